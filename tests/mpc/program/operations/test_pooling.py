"""Average pooling on shares: sums, and divisions by what everybody knows."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_shared

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(8))
HALF = {"kernel": (2, 2), "stride": (2, 2), "shape": (2, 3, 3, 3)}


def test_a_power_of_two_is_a_shift_of_the_scale() -> None:
    expect_shared("avg_pool2d", X, **HALF)
    expect_shared("avg_pool2d", X, divisor=8, **HALF)


@pytest.mark.parametrize("padded", [True, False])
def test_what_is_padded_counts_only_where_it_is_to(padded: bool) -> None:
    attributes = {"kernel": (3, 3), "stride": (3, 3), "padding": (1, 1), "shape": (2, 3, 2, 2)}
    expect_shared("avg_pool2d", X, padded=padded, **attributes)


def test_windows_of_different_sizes_are_divided_each_by_its_own() -> None:
    expect_shared("adaptive_avg_pool2d", X, kernel=(2, 2), shape=(2, 3, 4, 4))


def test_a_divisor_below_the_window_lets_values_grow() -> None:
    """The bound of the step must say so: the control is the result without a divisor."""
    expect_shared("avg_pool2d", X.abs() + 1, divisor=1, **HALF)
