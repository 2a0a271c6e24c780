"""Convolutions of all dimensions and transposed ones as steps, against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.encrypted_tail import compiled, run_tail
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.cut import trace
from splitsec.errors import UnsupportedLayerError

LINES = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(2))
VOLUMES = torch.randn(2, 4, 5, 6, 7, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), LINES),
        (nn.Conv1d(4, 6, 4, padding="same"), LINES),
        (nn.Conv2d(4, 6, 3, padding=(1, 2), dilation=2, groups=2), IMAGES),
        (nn.Conv2d(4, 4, (1, 4), padding="same", bias=False), IMAGES),
        (nn.Conv3d(4, 6, 3, padding=1), VOLUMES),
        (nn.Conv3d(4, 6, (2, 3, 1), stride=(2, 1, 2), padding=(1, 0, 1), dilation=(1, 2, 1), groups=2), VOLUMES),
        (nn.Conv3d(4, 6, 1, bias=False), VOLUMES),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), LINES),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), IMAGES),
        (nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=1, output_padding=(1, 2), groups=2), IMAGES),
        (nn.ConvTranspose2d(4, 4, 3, dilation=2, bias=False, groups=4), IMAGES),
        (nn.ConvTranspose2d(4, 2, 2, padding=1), IMAGES),
        (nn.ConvTranspose2d(4, 2, 1, stride=2, padding=1), IMAGES),
        (nn.ConvTranspose3d(4, 2, 3, stride=2, padding=1, output_padding=1), VOLUMES),
    ],
    ids=str,
)
def test_convolutions_are_those_of_torch(layer: nn.Module, x: torch.Tensor) -> None:
    assert "conv2d" in expect_same(layer, x)


def test_functions_are_as_their_layers() -> None:
    weight = torch.randn(4, 3, 2, 2)
    for function in (
        lambda x: F.conv_transpose2d(x, weight.to(x.dtype), stride=2, output_padding=1),
        lambda x: F.conv3d(x[:, :, None], weight.to(x.dtype).transpose(0, 1)[:, :, None])[:, :, 0],
    ):
        expect_same(function, IMAGES)


def test_a_norm_behind_a_convolution_of_volumes_is_that_of_torch() -> None:
    norm = nn.BatchNorm3d(4)
    norm(VOLUMES * 3 + 1)
    expect_same(nn.Sequential(nn.Conv3d(4, 4, 3), norm.eval(), nn.ReLU()), VOLUMES)


@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.ConvTranspose2d(4, 3, 2, stride=2), IMAGES), (nn.Conv3d(4, 3, 3, padding=1), VOLUMES)],
    ids=["transposed", "volume"],
)
def test_both_parties_get_what_torch_gives(layer: nn.Module, x: torch.Tensor) -> None:
    assert (run_tail(nn.Sequential(layer, nn.ReLU()), x)[0] - layer(x).relu()).abs().max() < 2e-3


def test_what_a_transposed_convolution_cannot_be_is_refused() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 4, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x, output_size=[15, 14])

    with pytest.raises(UnsupportedLayerError, match=r"'up' is called with an output_size; give it output_padding"):
        compiled(trace(Sized()), (1, 4, 7, 6))
    with pytest.raises(UnsupportedLayerError, match="takes a batch"):
        lowered(nn.ConvTranspose2d(2, 4, 3), torch.randn(2, 5, 5))
    with pytest.raises(UnsupportedLayerError, match="a weight that depends on the input"):
        lowered(lambda x: F.conv_transpose2d(x, x.transpose(0, 1)[:, :2]), torch.randn(2, 2, 3, 3))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(1, 2), "same"])
def test_borders_are_padded_as_torch_does(mode: str, padding: object) -> None:
    layer = nn.Conv2d(2, 3, (3, 5), padding=padding, padding_mode=mode)  # type: ignore[arg-type]
    expect_same(layer, torch.linspace(-1, 1, 2 * 2 * 7 * 8).view(2, 2, 7, 8))
    expect_same(nn.Conv1d(2, 3, 4, padding="same", padding_mode=mode), torch.linspace(-1, 1, 36).view(2, 2, 9))
