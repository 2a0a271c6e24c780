"""ReLU on shares: the sign of a value times the value, with truncation in the same opening.

One opening of c = z + r serves both: truncation by dealt r >> f and msb(r) (see `truncation`), and the comparison of c
with r (see `comparison`). The sign is then opened under a dealt bit t, and the product of sign and value is local,
since the dealer also gives t times each dealt part of the value. That product needs no multiplication protocol is the
fixed-operand trick of Boyle et al., "Function secret sharing for mixed-mode and fixed-point secure computation",
EUROCRYPT 2021, section 4, and of Orca (N. Jawalkar et al., IEEE S&P 2024, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from splitsec.mpc import comparison
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Correlation, Masks, Shape
from splitsec.mpc.kernels import Words, bits_of, select, truncate_and_select, words_for
from splitsec.mpc.prg import Stream
from splitsec.mpc.ring import HEADROOM_BITS, shift_right, top_bit


class ReluMask(Correlation, frozen=True):
    """What one ReLU on `count` elements takes.

    Args:
        count: elements.
        shift: fractional bits to drop; 0 keeps the scale.
        high: every value's magnitude is below 2**high - 2**shift; at most 62.
    """

    count: int
    shift: int
    high: int

    @property
    def width(self) -> int:
        """Bits that are compared."""
        return self.high - self.shift

    @property
    def products(self) -> int:
        """Vectors of ring elements that depend on r and t: r >> shift, msb(r), t and t times each; or t and t * r."""
        return 5 if self.shift else 2

    def correction_shapes(self) -> list[Shape]:
        words = words_for(self.count)
        return [(comparison.corrected_planes(self.width), words), (self.products, self.count)]

    def part_shapes(self, rank: int) -> list[Shape]:
        words = words_for(self.count)
        masks = comparison.mask_planes(self.width)
        return [(self.count,), (masks, words), (1, words), *self.correction_shapes()]

    def check(self) -> None:
        if not (self.count > 0 and 0 <= self.shift < self.high <= HEADROOM_BITS):
            raise ValueError(f"a ReLU of {self.count} elements, shift {self.shift}, {self.high} bits")

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        (r, sign_masks, t), (r1, sign_masks1, t1) = self._own(server), self._own(client)
        r, bits = r + r1, torch.from_numpy(bits_of((t ^ t1)[0], self.count))
        planes = comparison.deal_comparison(sign_masks ^ sign_masks1, r, self.shift, self.high)
        whole = torch.empty(self.products, self.count, dtype=torch.int64)
        if self.shift:
            whole[0], whole[1], whole[2] = shift_right(r, self.shift), top_bit(r), bits
            torch.mul(whole[:2], bits, out=whole[3:])
        else:
            whole[0] = bits
            torch.mul(r, bits, out=whole[1])
        planes ^= comparison.draw_planes(client, len(planes), self.count)
        whole -= client.ring(whole.shape)
        return [torch.from_numpy(planes.view(np.int64)), whole]

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        r, sign_masks, t = self._own(stream)
        own = [r, torch.from_numpy(sign_masks.view(np.int64)), torch.from_numpy(t.view(np.int64))]
        if rank == SERVER:
            return [*own, *corrections]
        return [*own, *(stream.ring(shape) for shape in self.correction_shapes())]

    def _own(self, stream: Stream) -> tuple[torch.Tensor, Words, Words]:
        """r, the masks of the comparison's bits and the plane of t, as one party draws them."""
        r = stream.ring((self.count,))
        return (
            r,
            comparison.draw_planes(stream, comparison.mask_planes(self.width), self.count),
            (comparison.draw_planes(stream, 1, self.count)),
        )


def relu(context: Context, share: torch.Tensor, *, shift: int = 0, high: int = HEADROOM_BITS) -> torch.Tensor:
    """Shares of max(z / 2**shift, 0), off by at most one unit in the last place, and exact where shift is 0.

    Args:
        share: int64 of any shape, a share of z with |z| < 2**high - 2**shift.
        shift: fractional bits to drop.
        high: the bound; a smaller one costs fewer bits.

    Returns:
        int64 of the same shape. Rounds: one to open z + r, two for the comparison (one up to 16 bits, none up to 4),
        one for the sign.
    """
    item = ReluMask(share.numel(), shift, high)
    mask, sign_masks, choice_mask, dealt, products = context.take(item)
    flat = share.reshape(-1) + mask
    (theirs,) = context.exchange([flat])
    first = context.rank == SERVER
    opened = flat + theirs
    signs = comparison.sign(context, opened + (1 << high), _planes(sign_masks), _planes(dealt), low=shift, high=high)
    choice = comparison.open_planes(context, signs[None] ^ _planes(choice_mask))[0]
    result = torch.empty_like(flat)
    if context.planning:
        return result.zero_().view(share.shape)
    parts = [part.numpy() for part in products]
    if shift:
        opened += 1 << HEADROOM_BITS
        truncate_and_select(opened.numpy(), choice, *parts, shift, first, result.numpy())
    else:
        select(opened.numpy(), choice, mask.numpy(), *parts, first, result.numpy())
    return result.view(share.shape)


def _planes(tensor: torch.Tensor) -> Words:
    planes: Words = tensor.numpy().view(np.uint64)
    return planes
