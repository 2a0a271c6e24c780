"""Sums of products by index letters as steps, against torch."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_same, lowered

from splitsec.errors import UnsupportedLayerError

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(
    "equation", ["bij,bkj->bik", "bij,bik->bjk", "bij,bkj->bki", "bij , bij -> bi", "bij,bij->bij", "bij,bkl->bijkl"]
)
def test_products_of_two_values_are_those_of_torch(equation: str) -> None:
    expect_same(lambda x: torch.einsum(equation, x, x * 0.5 + 1.0), X)


@pytest.mark.parametrize(
    ("equation", "shape"), [("bij,jk->bik", (4, 5)), ("bij,kj", (5, 4)), ("bij,ij->b", (3, 4)), ("bij,k->bijk", (2,))]
)
def test_products_with_a_constant_are_those_of_torch(equation: str, shape: tuple[int, ...]) -> None:
    constant = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    assert "linear" in expect_same(lambda x: torch.einsum(equation, x, constant.to(x.dtype)), X)
    left, rest = equation.split("->")[0].split(","), equation.partition("->")[2]
    turned = f"{left[1]},{left[0]}->{rest}" if rest else f"{left[1]},{left[0]}"
    expect_same(lambda x: torch.einsum(turned, [constant.to(x.dtype), x]), X)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("bij,bkl->bik", "sums within one value"),
        ("bii,bij->bj", "takes a diagonal"),
        ("...ij,...kj->...ik", "no product of two values by letters; use matmul"),
    ],
)
def test_what_no_product_of_matrices_is_is_refused(equation: str, reason: str) -> None:
    square = X[:, :, :3]
    with pytest.raises(UnsupportedLayerError, match=reason):
        lowered(lambda x: torch.einsum(equation, x, x), square)


def test_a_constant_for_each_sample_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"a constant for each 'i'; use \* and sum"):
        lowered(lambda x: torch.einsum("bij,ij->bi", x, torch.ones(3, 4).to(x.dtype)), X)
