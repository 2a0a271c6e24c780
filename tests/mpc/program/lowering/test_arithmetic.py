"""Sums and products as steps: with numbers, with constants of the server, and of two values on shares."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_same

X = torch.linspace(-2, 2, 24).view(2, 3, 4)
CONSTANT = torch.linspace(0.5, 1.5, 12).view(3, 4)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: 2 * x - 1, "affine"),
        (lambda x: 1 - x / 4, "affine"),
        (lambda x: x + x[:, :1], "add"),
        (lambda x: x * x, "mul"),
        (lambda x: x**3, "mul"),
        (lambda x: x @ x.transpose(1, 2), "matmul"),
        (lambda x: x * CONSTANT, "scale"),
        (lambda x: x.sum(-1), "sum"),
    ],
    ids=["affine", "reverse", "add", "product", "cube", "matmul", "constant", "sum"],
)
def test_arithmetic_is_that_of_torch(function: object, operation: str) -> None:
    assert operation in expect_same(function, X)  # type: ignore[arg-type]


def test_a_mean_is_a_sum_and_a_factor() -> None:
    operations = expect_same(lambda x: x.mean((1, 2)), X)
    assert "sum" in operations
