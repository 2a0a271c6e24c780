"""Products of shared values by Beaver's triples."""

from __future__ import annotations

import pytest
import torch
from support.two_party import run_both, share

from splitsec.mpc.context import Context
from splitsec.mpc.protocols.multiply import multiply, square

X = torch.tensor([[3, -4, 5], [0, 1, -(2**30)]])
Y = torch.tensor([[2, 2, -1], [7, 2**40, 3]])


def _both(function: object) -> torch.Tensor:
    (server, client), _ = run_both(function)  # type: ignore[arg-type]
    result: torch.Tensor = server + client
    return result


def test_products_are_exact_in_the_ring() -> None:
    def protocol(context: Context) -> torch.Tensor:
        return multiply(context, share(context, X), share(context, Y))

    assert torch.equal(_both(protocol), X * Y)


@pytest.mark.parametrize("right", [Y.t(), Y.t()[None].expand(4, 3, 2)])
def test_matrix_products_broadcast(right: torch.Tensor) -> None:
    def protocol(context: Context) -> torch.Tensor:
        return multiply(context, share(context, X), share(context, right.contiguous()), op="matmul")

    assert torch.equal(_both(protocol), X @ right)


def test_a_square_takes_one_mask() -> None:
    def protocol(context: Context) -> torch.Tensor:
        return square(context, share(context, X))

    assert torch.equal(_both(protocol), X * X)
