"""Pooling as steps, with torch's ways of counting what is padded and what is left over."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError

IMAGES = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (nn.MaxPool2d(3, 2, padding=1), "max_pool2d"),
        (nn.MaxPool2d(2, ceil_mode=True), "max_pool2d"),
        (nn.AvgPool2d(3, 2, padding=1), "avg_pool2d"),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), "avg_pool2d"),
        (nn.AvgPool2d(2, ceil_mode=True), "avg_pool2d"),
        (nn.AvgPool2d(2, divisor_override=3), "avg_pool2d"),
        (nn.AdaptiveAvgPool2d((1, 1)), "sum"),
        (nn.AdaptiveAvgPool2d(3), "adaptive_avg_pool2d"),
    ],
)
def test_pooling_is_that_of_torch(layer: nn.Module, operation: str) -> None:
    operations = expect_same(layer, IMAGES)
    assert operation in operations or "avg_pool2d" in operations


def test_pooling_of_one_dimension_is_that_of_two() -> None:
    assert "max_pool2d" in expect_same(nn.MaxPool1d(3, 2, padding=1), IMAGES.flatten(2))


def test_indices_of_a_pool_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[1], IMAGES)


VOLUMES = torch.randn(2, 3, 6, 8, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.MaxPool3d(2), nn.MaxPool3d((3, 2, 1), stride=(1, 2, 1), padding=(1, 1, 0)), nn.AvgPool3d(2)),
        *(
            nn.AvgPool3d((3, 2, 2), stride=1, padding=(1, 1, 0)),
            nn.AdaptiveAvgPool3d((3, 2, 1)),
            nn.AdaptiveMaxPool3d(2),
        ),
    ],
    ids=str,
)
def test_pooling_of_volumes_is_that_of_torch(layer: nn.Module) -> None:
    expect_same(layer, VOLUMES)


@pytest.mark.parametrize(
    "layer",
    [nn.MaxPool3d(3, ceil_mode=True), nn.AvgPool3d(3, padding=1, count_include_pad=False), nn.AdaptiveAvgPool3d(4)],
    ids=str,
)
def test_what_cannot_be_pooled_one_dimension_after_the_other_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayerError, match="leave it out|count_include_pad=True|use sizes that divide"):
        lowered(layer, VOLUMES)
