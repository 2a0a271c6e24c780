"""Truncation of a shared product back to the working precision, by a masked opening.

D. Escudero, S. Ghosh, M. Keller, R. Rachuri, P. Scholl, "Improved primitives for MPC over mixed arithmetic-binary
circuits", CRYPTO 2020, section 5 (probabilistic truncation): off by at most one unit in the last place, unbiased, and
free of the rare huge errors of truncating each share locally.
"""

from __future__ import annotations

import torch

from splitsec.mpc.beaver import Products
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Shape, correlation
from splitsec.mpc.ring import HEADROOM_BITS, shift_right, top_bit


@correlation
class Truncation(Products, frozen=True):
    """A mask r, r >> bits and msb(r), for `truncate`."""

    shape: Shape
    bits: int

    def _inputs(self) -> list[Shape]:
        return [self.shape]

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [shift_right(inputs[0], self.bits), top_bit(inputs[0])]

    def correction_shapes(self) -> list[Shape]:
        return [self.shape, self.shape]

    def check(self) -> None:
        if not 0 < self.bits < HEADROOM_BITS:
            raise ValueError(f"a truncation by {self.bits} bits")


def truncate(context: Context, share: torch.Tensor, bits: int) -> torch.Tensor:
    """Return shares of floor(z / 2**bits) + e, with e in {0, 1} and equal to 1 with the chance of the lost fraction.

    Args:
        share: int64 of any shape, a share of z with |z| < 2**62.
        bits: 0 < bits < 62.

    Returns:
        int64 of the same shape. One round; each party sends 8 bytes an element.

    With z' = z + 2**62 and c = z' + r, the sum wraps exactly when msb(r) = 1 and msb(c) = 0, since z' < 2**63.
    """
    mask, mask_shifted, mask_top = context.take(Truncation(tuple(share.shape), bits))
    masked = share + mask
    (other,) = context.exchange([masked])
    opened = masked + other + (1 << HEADROOM_BITS)
    result = (1 - top_bit(opened)) * (mask_top << (64 - bits)) - mask_shifted
    if context.rank == SERVER:
        result += shift_right(opened, bits) - (1 << (HEADROOM_BITS - bits))
    return result
