"""Products of two shared tensors, and squares, by the dealer's triples.

D. Beaver, "Efficient multiparty protocols using circuit randomization", CRYPTO 1991.
"""

from __future__ import annotations

from typing import Literal

import torch

from splitsec.mpc.beaver import SquarePair, Triple
from splitsec.mpc.context import SERVER, Context


def multiply(
    context: Context, x: torch.Tensor, y: torch.Tensor, *, op: Literal["mul", "matmul"] = "mul"
) -> torch.Tensor:
    """Return shares of x * y (shapes broadcast) or of the matrix product; the scales add up. One round.

    Each party sends 8 bytes an element of both.
    """
    function = torch.mul if op == "mul" else torch.matmul
    a, b, c = context.take(Triple(op, tuple(x.shape), tuple(y.shape)))
    own = [x - a, y - b]
    other = context.exchange(own)
    if context.planning:
        return torch.zeros(c.shape, dtype=torch.int64)
    left, right = own[0] + other[0], own[1] + other[1]
    # (left + a)(right + b) without the product of the two public ones, which the server alone adds.
    result = function(left, b + right if context.rank == SERVER else b)
    result += function(a, right)
    result += c
    return result


def square(context: Context, x: torch.Tensor) -> torch.Tensor:
    """Return shares of x * x, element by element. One round; each party sends 8 bytes an element."""
    r, r2 = context.take(SquarePair(tuple(x.shape)))
    own = x - r
    (other,) = context.exchange([own])
    opened = own + other
    result = r2 + 2 * opened * r
    return result + opened * opened if context.rank == SERVER else result
