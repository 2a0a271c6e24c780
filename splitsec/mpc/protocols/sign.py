"""Whether shared values are at least zero, as shares of 0 or 1: for labels, for range checks, for CrypTen's functions.

The comparison is that of `compare`; its bit is opened under a dealt bit t whose additive shares are dealt as well,
so that b = s + (1 - 2s) t is local for the opened s.
"""

from __future__ import annotations

import torch

from splitsec.mpc.bit_planes import bits_of, planes_in, words_for
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Masked, Masks, Shape, correlation
from splitsec.mpc.prg import Stream
from splitsec.mpc.protocols.compare import open_planes
from splitsec.mpc.protocols.comparison import Comparison, comparison_of
from splitsec.mpc.ring import HEADROOM_BITS


@correlation
class SignMask(Masked, frozen=True):
    """What the signs of `count` values take: magnitudes below 2**high - 2**low, bits below `low` do not count."""

    count: int
    low: int
    high: int
    kind: str = "tables"

    @property
    def comparison(self) -> Comparison:
        """Return the comparison."""
        return comparison_of(self.kind, self.count, self.low, self.high)

    def own_shapes(self) -> list[Shape]:
        """Return the shapes of r, of what the comparison takes, and of the plane of t."""
        return [(self.count,), *self.comparison.own_shapes(), (1, words_for(self.count))]

    def masked_shapes(self) -> list[Shape]:
        """Return the shapes of what the comparison takes, and of t."""
        return [*self.comparison.masked_shapes(), (self.count,)]

    def shared_shapes(self) -> list[Shape]:
        return self.comparison.shared_shapes()

    def check(self) -> None:
        if not (self.count > 0 and 0 <= self.low < self.high <= HEADROOM_BITS):
            raise ValueError(f"signs of {self.count} elements, bits {self.low} to {self.high}")

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        (r, own, t), (r1, own1, t1) = self.draw_own(server), self.draw_own(client)
        masked, shared = self.comparison.deal(own, own1, r + r1, client)
        bits = torch.from_numpy(bits_of(planes_in(t ^ t1)[0], self.count))
        return [*masked, bits.sub_(client.ring((self.count,))), *shared]


def at_least_zero(context: Context, share: torch.Tensor, *, low: int = 0, high: int = HEADROOM_BITS) -> torch.Tensor:
    """Return shares of [z >= 0], 0 or 1; within 2**low below zero either may come.

    Args:
        share: int64 of any shape, a share of z with |z| < 2**high - 2**low.

    Returns:
        int64 of the same shape. Rounds as for a ReLU: one to open z + r, up to two to compare, one for the bit.
    """
    item = SignMask(share.numel(), low, high, context.comparison)
    mask, own, choice_mask, dealt, bit, *shared = context.take(item)
    flat = share.reshape(-1) + mask
    (other,) = context.exchange([flat])
    signs = item.comparison.signs(context, flat + other + (1 << high), own, dealt, shared)
    opened = open_planes(context, signs[None] ^ planes_in(choice_mask))[0]
    if context.planning:
        return torch.zeros_like(share)
    public = torch.from_numpy(bits_of(opened, item.count))
    result = (1 - 2 * public) * bit
    if context.rank == SERVER:
        result += public
    return result.view(share.shape)
