"""Layers with weights as steps, and what is folded into them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError

IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
ROWS = IMAGES.flatten(2)


def _with_statistics(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for name in ("running_mean", "running_var", "weight", "bias"):
        with torch.no_grad():
            getattr(norm, name).copy_(torch.rand(4, generator=generator) + 0.5)
    return norm


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 2, (1, 3), padding="same", dilation=(1, 2), bias=False),
        nn.Conv2d(4, 2, 3, padding="valid"),
    ],
    ids=["strided", "same", "valid"],
)
def test_a_convolution_is_one_step(layer: nn.Module) -> None:
    assert [operation for operation in expect_same(layer, IMAGES) if operation != "pad"] == ["conv2d"]


def test_a_convolution_of_one_dimension_is_one_of_two() -> None:
    assert "conv2d" in expect_same(nn.Conv1d(4, 3, 5, padding="same"), ROWS)


def test_a_batch_norm_behind_a_convolution_is_folded_into_it() -> None:
    torch.manual_seed(0)
    both = nn.Sequential(nn.Conv2d(3, 4, 1), _with_statistics(nn.BatchNorm2d(4)))
    assert expect_same(both, IMAGES[:, :3]) == ["conv2d"]
    # The control: alone it is a step of its own.
    assert expect_same(nn.Sequential(_with_statistics(nn.BatchNorm2d(4))), IMAGES) == ["scale"]


@pytest.mark.parametrize("layer", [nn.LayerNorm((6, 6)), nn.GroupNorm(2, 4), nn.LayerNorm(6, elementwise_affine=False)])
def test_norms_standardise_rows(layer: nn.Module) -> None:
    assert "standardise" in expect_same(layer, IMAGES)


def test_a_slope_of_the_server_takes_a_product() -> None:
    assert "scale" in expect_same(nn.PReLU(4), IMAGES)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), "has no running statistics"),
        (lambda x: F.conv2d(x, x[:, :, :1, :1]), "depends on the input"),
    ],
    ids=["statistics", "weight"],
)
def test_what_a_layer_cannot_be_is_named_with_what_to_do(layer: object, reason: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=reason):
        lowered(layer, IMAGES)  # type: ignore[arg-type]


SEQUENCES = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    "layer", [nn.RMSNorm(8), nn.RMSNorm((3, 8), eps=1e-3), nn.RMSNorm(8, elementwise_affine=False)], ids=str
)
def test_rms_norms_are_those_of_torch(layer: nn.RMSNorm) -> None:
    if layer.weight is not None:
        nn.init.normal_(layer.weight)
    assert "standardise" in expect_same(layer, SEQUENCES * 3 + 2, off=1e-4)


def test_instance_norms_are_those_of_torch_with_and_without_running_statistics() -> None:
    expect_same(nn.Sequential(nn.InstanceNorm1d(3)), SEQUENCES, off=1e-4)
    expect_same(nn.Sequential(nn.InstanceNorm2d(3, affine=True)), SEQUENCES.view(2, 3, 2, 4), off=1e-4)
    expect_same(nn.Sequential(nn.InstanceNorm3d(3)), SEQUENCES.view(2, 3, 2, 2, 2), off=1e-4)
    kept = nn.InstanceNorm1d(3, track_running_stats=True)
    kept(SEQUENCES * 2 + 1)
    assert "standardise" not in expect_same(nn.Sequential(kept), SEQUENCES)
