"""Whether shared values are at least zero, as shares of 0 or 1: for labels, for range checks, for CrypTen's functions.

The comparison is that of `comparison`; its bit is opened under a dealt bit t whose additive shares are dealt as well,
so that b = s + (1 - 2s) t is local for the opened s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from splitsec.mpc import comparison
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Correlation, Masks, Shape
from splitsec.mpc.kernels import Words, bits_of, words_for
from splitsec.mpc.prg import Stream
from splitsec.mpc.ring import HEADROOM_BITS


class SignMask(Correlation, frozen=True):
    """What the signs of `count` values take: magnitudes below 2**high - 2**low, bits below `low` do not count."""

    count: int
    low: int
    high: int

    def _planes(self) -> tuple[int, int, int]:
        words, width = words_for(self.count), self.high - self.low
        return comparison.mask_planes(width, words), comparison.corrected_planes(width, words), words

    def correction_shapes(self) -> list[Shape]:
        _, corrected, words = self._planes()
        return [(corrected, words), (self.count,)]

    def part_shapes(self, rank: int) -> list[Shape]:
        masks, _, words = self._planes()
        return [(self.count,), (masks, words), (1, words), *self.correction_shapes()]

    def check(self) -> None:
        if not (self.count > 0 and 0 <= self.low < self.high <= HEADROOM_BITS):
            raise ValueError(f"signs of {self.count} elements, bits {self.low} to {self.high}")

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        (r, sign_masks, t), (r1, sign_masks1, t1) = self._own(server), self._own(client)
        planes = comparison.deal_comparison(sign_masks ^ sign_masks1, r + r1, self.low, self.high)
        planes ^= comparison.draw_planes(client, len(planes), self.count)
        bits = torch.from_numpy(bits_of((t ^ t1)[0], self.count))
        return [torch.from_numpy(planes.view(np.int64)), bits.sub_(client.ring((self.count,)))]

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        r, sign_masks, t = self._own(stream)
        own = [r, torch.from_numpy(sign_masks.view(np.int64)), torch.from_numpy(t.view(np.int64))]
        if rank == SERVER:
            return [*own, *corrections]
        return [*own, *(stream.ring(shape) for shape in self.correction_shapes())]

    def _own(self, stream: Stream) -> tuple[torch.Tensor, Words, Words]:
        masks, _, _ = self._planes()
        r = stream.ring((self.count,))
        return r, comparison.draw_planes(stream, masks, self.count), comparison.draw_planes(stream, 1, self.count)


def at_least_zero(context: Context, share: torch.Tensor, *, low: int = 0, high: int = HEADROOM_BITS) -> torch.Tensor:
    """Shares of [z >= 0], 0 or 1; within 2**low below zero either may come.

    Args:
        share: int64 of any shape, a share of z with |z| < 2**high - 2**low.

    Returns:
        int64 of the same shape. Rounds as for a ReLU: one to open z + r, up to two to compare, one for the bit.
    """
    item = SignMask(share.numel(), low, high)
    mask, *planes, bit = context.take(item)
    sign_masks, choice_mask, dealt = (one.numpy().view(np.uint64) for one in planes)
    flat = share.reshape(-1) + mask
    (theirs,) = context.exchange([flat])
    signs = comparison.sign(context, flat + theirs + (1 << high), sign_masks, dealt, low=low, high=high)
    opened = comparison.open_planes(context, signs[None] ^ choice_mask)[0]
    if context.planning:
        return torch.zeros_like(share)
    public = torch.from_numpy(bits_of(opened, item.count))
    result = (1 - 2 * public) * bit
    if context.rank == SERVER:
        result += public
    return result.view(share.shape)
