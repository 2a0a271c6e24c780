"""Steps that only move elements are local, and exact."""

from __future__ import annotations

import torch
from support.plain_tail import expect_shared

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(7))


def test_elements_go_where_the_step_says() -> None:
    expect_shared("reshape", X, shape=(2, 12))
    expect_shared("permute", X, index=(0, 2, 1), shape=(2, 4, 3))
    expect_shared("index", X, index=(0, 2, 1, 1, 3, 1, 0, 4, 2), shape=(2, 2, 2))
    expect_shared("gather", X, dim=1, index=(2, 0), shape=(2, 2, 4))
    expect_shared("pad", X, padding=(1, 0), shape=(2, 3, 5))
    expect_shared("expand", X[:, :1], shape=(2, 3, 4))


def test_values_are_put_together_along_the_dimension() -> None:
    expect_shared("cat", X, X * 2, dim=2, shape=(2, 3, 8))
