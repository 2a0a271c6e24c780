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
