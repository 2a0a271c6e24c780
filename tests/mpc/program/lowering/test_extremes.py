"""Largest, smallest and absolute values as steps."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "function",
    [
        torch.abs,
        lambda x: torch.maximum(x, x * -1),
        lambda x: torch.minimum(x, x[:, :1]),
        lambda x: x.amax(-1),
        lambda x: x.amin((2, 3)),
        lambda x: x.max(1).values,
        lambda x: x.min(1, keepdim=True).values,
        nn.AdaptiveMaxPool2d(2),
    ],
    ids=["abs", "maximum", "minimum", "amax", "amin", "max", "min", "adaptive"],
)
def test_extremes_are_those_of_torch(function: object) -> None:
    expect_same(function, X)  # type: ignore[arg-type]


def test_indices_of_a_maximum_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(lambda x: x.max(1).indices, X)


def test_a_maximum_over_the_batch_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(lambda x: x - x.amax(0), X)
