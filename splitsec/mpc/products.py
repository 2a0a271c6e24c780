"""Products of two shared tensors, and squares, by the dealer's triples.

D. Beaver, "Efficient multiparty protocols using circuit randomization", CRYPTO 1991.
"""

from __future__ import annotations

from typing import Literal

import torch

from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.triples import SquarePair, Triple


def multiply(
    context: Context, x: torch.Tensor, y: torch.Tensor, *, op: Literal["mul", "matmul"] = "mul"
) -> torch.Tensor:
    """Shares of x * y (shapes broadcast) or of the matrix product; the scales add up. One round.

    Each party sends 8 bytes an element of both.
    """
    function = torch.mul if op == "mul" else torch.matmul
    a, b, c = context.take(Triple(op, tuple(x.shape), tuple(y.shape)))
    mine = [x - a, y - b]
    theirs = context.exchange(mine)
    if context.planning:
        return torch.zeros(c.shape, dtype=torch.int64)
    left, right = mine[0] + theirs[0], mine[1] + theirs[1]
    # (left + a)(right + b) without the product of the two public ones, which the server alone adds.
    made = function(left, b + right if context.rank == SERVER else b)
    made += function(a, right)
    made += c
    return made


def square(context: Context, x: torch.Tensor) -> torch.Tensor:
    """Shares of x * x, element by element. One round; each party sends 8 bytes an element."""
    r, r2 = context.take(SquarePair(tuple(x.shape)))
    mine = x - r
    (theirs,) = context.exchange([mine])
    opened = mine + theirs
    made = r2 + 2 * opened * r
    return made + opened * opened if context.rank == SERVER else made
