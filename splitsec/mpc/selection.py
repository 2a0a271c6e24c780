"""ReLU on shares: the sign of a value times the value, with truncation in the same opening.

One opening of c = z + r serves both: truncation by dealt r >> f and msb(r) (see `truncation`), and the comparison of c
with r (see `comparison`). The sign is then opened under a dealt bit t, and the product of sign and value is local,
since the dealer also gives t times each dealt part of the value. That product needs no multiplication protocol is the
fixed-operand trick of Boyle et al., "Function secret sharing for mixed-mode and fixed-point secure computation",
EUROCRYPT 2021, section 4, and of Orca (N. Jawalkar et al., IEEE S&P 2024, section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from splitsec.mpc import comparison
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Correlation, Masks, Shape
from splitsec.mpc.kernels import Ints, Words, bits_of, select, truncate_and_select, words_for
from splitsec.mpc.prg import Stream
from splitsec.mpc.ring import HEADROOM_BITS, shift_right


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

    def correction_shapes(self) -> list[Shape]:
        words = words_for(self.count)
        return [(comparison.corrected_planes(self.width, words), words), *selection_shapes(self.shift, self.count)]

    def part_shapes(self, rank: int) -> list[Shape]:
        words = words_for(self.count)
        masks = comparison.mask_planes(self.width, words)
        return [(self.count,), (masks, words), (1, words), *self.correction_shapes()]

    def check(self) -> None:
        if not (self.count > 0 and 0 <= self.shift < self.high <= HEADROOM_BITS):
            raise ValueError(f"a ReLU of {self.count} elements, shift {self.shift}, {self.high} bits")

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        (r, sign_masks, t), (r1, sign_masks1, t1) = self._own(server), self._own(client)
        r, bits = r + r1, bits_of((t ^ t1)[0], self.count)
        planes = comparison.deal_comparison(sign_masks ^ sign_masks1, r, self.shift, self.high)
        planes ^= comparison.draw_planes(client, len(planes), self.count)
        return [torch.from_numpy(planes.view(np.int64)), *deal_selection(client, r, bits, self.shift)]

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
            comparison.draw_planes(stream, comparison.mask_planes(self.width, words_for(self.count)), self.count),
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
    mask, sign_masks, choice_mask, dealt, *products = context.take(item)
    flat = share.reshape(-1) + mask
    (theirs,) = context.exchange([flat])
    opened = flat + theirs
    shifted = opened + (1 << high)
    signs = comparison.sign(context, shifted, _planes(sign_masks), _planes(dealt), low=shift, high=high)
    choice = comparison.open_planes(context, signs[None] ^ _planes(choice_mask))[0]
    if context.planning:
        return torch.zeros_like(share)
    return select_value(context, opened, choice, mask, products, shift).view(share.shape)


def _small(shift: int) -> type[np.unsignedinteger[Any]]:
    # msb(r) is used times 2**(64 - shift), so that only `shift` bits of its shares count.
    return np.uint16 if shift <= 16 else np.uint32 if shift <= 32 else np.uint64


def selection_shapes(shift: int, count: int) -> list[Shape]:
    """Shapes of what is dealt for a selection, int64.

    With truncation (r >> shift, t, t * (r >> shift)) and msb(r), t * msb(r) in as few bytes as will do; without it
    (t, t * r).
    """
    if not shift:
        return [(2, count)]
    return [(3, count), (-(-2 * count * np.dtype(_small(shift)).itemsize // 8),)]


def deal_selection(client: Stream, r: torch.Tensor, bits: Ints, shift: int) -> list[torch.Tensor]:
    """The server's shares of what is dealt for r and the bits t, by `selection_shapes`; the client's come from its
    stream."""
    t = torch.from_numpy(bits)
    shapes = selection_shapes(shift, r.numel())
    whole = torch.empty(shapes[0], dtype=torch.int64)
    if not shift:
        whole[0] = t
        torch.mul(r, t, out=whole[1])
        return [whole.sub_(client.ring(shapes[0]))]
    whole[0], whole[1] = shift_right(r, shift), t
    torch.mul(whole[0], t, out=whole[2])
    whole -= client.ring(shapes[0])
    small = client.ring(shapes[1])
    held = small.numpy().view(_small(shift))
    top = (r.numpy() < 0).astype(held.dtype)
    count = r.numel()
    np.subtract(top, held[:count], out=held[:count])
    top *= bits.astype(held.dtype)
    np.subtract(top, held[count : 2 * count], out=held[count : 2 * count])
    return [whole, small]


def select_value(
    context: Context, opened: torch.Tensor, choice: Words, mask: torch.Tensor, dealt: list[torch.Tensor], shift: int
) -> torch.Tensor:
    """Shares of b * (z >> shift) from the opened c = z + r and the opened plane of b xor t; local.

    Args:
        opened: c, int64 (n,).
        mask: share of r, int64 (n,).
        dealt: shares of what `selection_shapes(shift, n)` describes.
    """
    result = torch.empty_like(opened)
    first = context.rank == SERVER
    parts = [part.numpy() for part in dealt[0]]
    if shift:
        small = dealt[1].numpy().view(_small(shift))
        count = opened.numel()
        moved = opened + (1 << HEADROOM_BITS)
        truncate_and_select(
            moved.numpy(), choice, *parts, small[:count], small[count : 2 * count], shift, first, result.numpy()
        )
    else:
        select(opened.numpy(), choice, mask.numpy(), *parts, first, result.numpy())
    return result


def _planes(tensor: torch.Tensor) -> Words:
    planes: Words = tensor.numpy().view(np.uint64)
    return planes
