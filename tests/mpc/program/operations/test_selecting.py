"""Selections on shares: of one value or another, by comparisons."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_shared, run_shared

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(9)) * 3


def test_bends_are_where_the_step_says() -> None:
    expect_shared("relu", X)
    expect_shared("leaky_relu", X, slope=0.25)
    expect_shared("hardtanh", X, low=-0.5, high=2.0)


@pytest.mark.parametrize("zero", [False, True])
def test_the_largest_of_a_window_is_selected(zero: bool) -> None:
    attributes = {"kernel": (2, 2), "stride": (2, 2), "shape": (2, 3, 3, 3)}
    expect_shared("max_pool2d", X - 4, zero=zero, **attributes)
    # The control: with `zero` nothing below zero is left.
    assert (run_shared("max_pool2d", X - 4, zero=zero, **attributes).min() >= 0) == zero


def test_the_class_of_the_largest_value_is_marked() -> None:
    scores = torch.tensor([[0.1, 2.0, -1.0], [3.0, 2.5, 2.9]])
    assert run_shared("argmax", scores).long().tolist() == [[0, 1, 0], [1, 0, 0]]
