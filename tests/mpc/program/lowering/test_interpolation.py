"""Interpolation as steps, against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.encrypted_tail import run_tail
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError

IMAGES = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "options",
    [
        {"scale_factor": 2},
        {"size": (7, 9)},
        {"size": (3, 2), "mode": "nearest-exact"},
        {"scale_factor": 2, "mode": "bilinear"},
        {"scale_factor": 2, "mode": "bilinear", "align_corners": True},
        {"size": (8, 3), "mode": "bicubic"},
        {"size": (2, 2), "mode": "area"},
    ],
    ids=str,
)
def test_images_grow_and_shrink_as_in_torch(options: dict[str, Any]) -> None:
    expect_same(nn.Upsample(**options), IMAGES)
    expect_same(lambda x: F.interpolate(x, **options), IMAGES)


def test_lines_and_volumes_are_interpolated_too() -> None:
    expect_same(nn.Upsample(scale_factor=3, mode="linear"), IMAGES.flatten(2))
    expect_same(nn.Upsample(scale_factor=2), IMAGES.flatten(2))
    expect_same(nn.Upsample(size=(4, 5, 3), mode="trilinear"), torch.randn(2, 3, 3, 5, 4))
    expect_same(nn.UpsamplingBilinear2d(scale_factor=2), IMAGES)


def test_both_parties_get_what_torch_gives() -> None:
    layer = nn.Upsample(scale_factor=2, mode="bilinear")
    assert (run_tail(nn.Sequential(nn.ReLU(), layer), IMAGES)[0] - layer(IMAGES.relu())).abs().max() < 2e-3


def test_smoothing_before_shrinking_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="antialias=True; leave it out"):
        lowered(lambda x: F.interpolate(x, size=(2, 2), mode="bilinear", antialias=True), IMAGES)
