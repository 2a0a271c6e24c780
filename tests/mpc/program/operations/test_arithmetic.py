"""Sums and products of values on shares, step by step."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_shared, run_shared

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def test_a_sum_and_an_affine_step_are_local() -> None:
    expect_shared("add", X, Y)
    expect_shared("affine", X, factor=-2.5, offset=0.75)


def test_products_of_two_values_are_those_of_torch() -> None:
    expect_shared("mul", X, Y)
    expect_shared("matmul", X, Y.t(), kernel=(4,), shape=(3, 3))


def test_a_sum_over_dimensions_keeps_the_shape_that_it_is_given() -> None:
    expect_shared("sum", X, index=(1,), kernel=(4,), shape=(3,))
    expect_shared("sum", X, index=(1,), kernel=(4,), shape=(3, 1))


@pytest.mark.parametrize("op", ["add", "mul"])
def test_control_another_value_gives_another_result(op: str) -> None:
    assert not torch.allclose(run_shared(op, X, Y), run_shared(op, X, Y + 1), atol=0.01)
