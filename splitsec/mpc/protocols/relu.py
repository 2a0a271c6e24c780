"""ReLU on shares: the sign of a value times the value, with truncation in the same opening.

One opening of c = z + r serves both: truncation by dealt r >> f and msb(r) (see `truncate`), and the comparison of c
with r (see `compare`). The sign is then opened under a dealt bit t, and the product of sign and value is local,
since the dealer also gives t times each dealt part of the value. That product needs no multiplication protocol is the
fixed-operand trick of Boyle et al., "Function secret sharing for mixed-mode and fixed-point secure computation",
EUROCRYPT 2021, section 4, and of Orca (N. Jawalkar et al., IEEE S&P 2024, section 4.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from splitsec.mpc.bit_planes import Ints, Words, bits_of, planes_in, select, truncate_and_select, words_for
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Masked, Masks, Shape, correlation
from splitsec.mpc.prg import Stream
from splitsec.mpc.protocols.compare import open_planes
from splitsec.mpc.protocols.comparison import Comparison, comparison_of
from splitsec.mpc.ring import HEADROOM_BITS, shift_right


@correlation
class ReluMask(Masked, frozen=True):
    """What one ReLU on `count` elements takes.

    Args:
        count: elements.
        shift: fractional bits to drop; 0 keeps the scale.
        high: every value's magnitude is below 2**high - 2**shift; at most 62.
    """

    count: int
    shift: int
    high: int
    kind: str = "tables"

    @property
    def comparison(self) -> Comparison:
        """Return the comparison."""
        return comparison_of(self.kind, self.count, self.shift, self.high)

    def own_shapes(self) -> list[Shape]:
        """Return the shapes of r, of what the comparison takes, and of the plane of t."""
        return [(self.count,), *self.comparison.own_shapes(), (1, words_for(self.count))]

    def masked_shapes(self) -> list[Shape]:
        """Return the shapes of what the comparison takes, and of what the selection takes."""
        return [*self.comparison.masked_shapes(), *selection_shapes(self.shift, self.count)]

    def shared_shapes(self) -> list[Shape]:
        return self.comparison.shared_shapes()

    def check(self) -> None:
        if not (self.count > 0 and 0 <= self.shift < self.high <= HEADROOM_BITS):
            raise ValueError(f"a ReLU of {self.count} elements, shift {self.shift}, {self.high} bits")

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        (r, own, t), (r1, own1, t1) = self.draw_own(server), self.draw_own(client)
        r, bits = r + r1, bits_of(planes_in(t ^ t1)[0], self.count)
        masked, shared = self.comparison.deal(own, own1, r, client)
        return [*masked, *deal_selection(client, r, bits, self.shift), *shared]


def relu(context: Context, share: torch.Tensor, *, shift: int = 0, high: int = HEADROOM_BITS) -> torch.Tensor:
    """Return shares of max(z / 2**shift, 0), off by at most one unit in the last place, and exact where shift is 0.

    Args:
        share: int64 of any shape, a share of z with |z| < 2**high - 2**shift.
        shift: fractional bits to drop.
        high: the bound; a smaller one costs fewer bits.

    Returns:
        int64 of the same shape. Rounds: one to open z + r, two for the comparison (one up to 16 bits or for few
        elements, none up to 4 bits or with `dcf`), one for the sign.
    """
    item = ReluMask(share.numel(), shift, high, context.comparison)
    mask, own, choice_mask, dealt, *rest = context.take(item)
    products, shared = rest[: len(selection_shapes(shift, 1))], rest[len(selection_shapes(shift, 1)) :]
    flat = share.reshape(-1) + mask
    (other,) = context.exchange([flat])
    opened = flat + other
    signs = item.comparison.signs(context, opened + (1 << high), own, dealt, shared)
    choice = open_planes(context, signs[None] ^ planes_in(choice_mask))[0]
    if context.planning:
        return torch.zeros_like(share)
    return select_value(context, opened, choice, mask, products, shift).view(share.shape)


def _small(shift: int) -> type[np.unsignedinteger[Any]]:
    # msb(r) is used times 2**(64 - shift), so that only `shift` bits of its shares count.
    return np.uint16 if shift <= 16 else np.uint32 if shift <= 32 else np.uint64


def selection_shapes(shift: int, count: int) -> list[Shape]:
    """Return the shapes of what is dealt for a selection, int64.

    With truncation (r >> shift, t, t * (r >> shift)) and msb(r), t * msb(r) in as few bytes as will do; without it
    (t, t * r).
    """
    if not shift:
        return [(2, count)]
    return [(3, count), (-(-2 * count * np.dtype(_small(shift)).itemsize // 8),)]


def deal_selection(client: Stream, r: torch.Tensor, bits: Ints, shift: int) -> list[torch.Tensor]:
    """Return the server's shares of what is dealt for r and the bits t, in `selection_shapes`.

    The client's come from its stream.
    """
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
    halves = small.numpy().view(_small(shift))
    top = (r.numpy() < 0).astype(halves.dtype)
    count = r.numel()
    np.subtract(top, halves[:count], out=halves[:count])
    top *= bits.astype(halves.dtype)
    np.subtract(top, halves[count : 2 * count], out=halves[count : 2 * count])
    return [whole, small]


def select_value(
    context: Context, opened: torch.Tensor, choice: Words, mask: torch.Tensor, dealt: list[torch.Tensor], shift: int
) -> torch.Tensor:
    """Return shares of b * (z >> shift) from the opened c = z + r and the opened plane of b xor t; local.

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
