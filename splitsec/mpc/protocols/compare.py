"""Comparing a public with a dealt number: the circuit's shape, what the dealer gives for it, and its evaluation.

The sign of a shared z is found from the opened c = z + r and dealt bits of r, as in I. Damgard et al., "Unconditionally
secure constant-rounds multi-party computation for equality, comparison, bits and exponentiation", TCC 2006, section 6,
with the digits and multi-input products of S. Ohata and K. Nuida, "Communication-efficient (client-aided) secure
two-party protocols and its application", FC 2020, section 4: digits of 4 bits are compared locally, since one side is
public, and groups of up to 4 (or 8) digits are joined by one opening of masked bits. Windows of 5 to 16 digits take two
openings.

Everything here is bits in XOR sharing, held as planes (see `bit_planes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from splitsec.mpc.bit_planes import (
    Words,
    and_rows,
    compare_digits,
    join_digits,
    planes_in,
    planes_of,
    tensor_of,
    words_for,
)
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Shape
from splitsec.mpc.prg import Stream
from splitsec.mpc.protocols.comparison import COMPARISONS, Comparison

DIGIT_BITS = 4
MONOMIALS = 15
# Digits that one opening joins. Eight need ten times the dealt bits of two times four, and save a round: the better
# choice where there are so few elements that rounds are all that counts.
GROUP = 4
WIDE_GROUP = 8
FEW_WORDS = 16


@dataclass(frozen=True)
class _Group:
    """One gate: digits `start` to `start + size - 1` of a level, lowest first; the lowest group needs no equal."""

    start: int
    size: int
    equal: bool

    @property
    def masks(self) -> int:
        """Return the number of bits that are opened.

        One for less a digit, and one for equal a digit, but for the lowest where no equal is needed.
        """
        return 2 * self.size - (not self.equal)


@dataclass(frozen=True)
class _Rows:
    """Where a group's masks and products stand among its rows."""

    equal: np.ndarray[tuple[int], np.dtype[np.int64]]
    less: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    products: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    count: int


@cache
def levels(width: int, *, wide: bool) -> tuple[tuple[_Group, ...], ...]:
    """Return the gates for a comparison of `width` bits, level by level."""
    gates = []
    digits = -(-width // DIGIT_BITS)
    while digits > 1:
        count = -(-digits // (WIDE_GROUP if wide else GROUP))
        sizes = [digits // count + (index < digits % count) for index in range(count)]
        starts = [sum(sizes[:index]) for index in range(count)]
        gates.append(tuple(_Group(start, size, start > 0) for start, size in zip(starts, sizes, strict=True)))
        digits = count
    return tuple(gates)


@cache
def _rows(group: _Group) -> _Rows:
    """Lay out a group's rows: masks (less of each digit, then equal), then products, by the rows of their factors."""
    equal = np.full(1 << WIDE_GROUP, -1, dtype=np.int64)
    less = np.full((WIDE_GROUP, 1 << WIDE_GROUP), -1, dtype=np.int64)
    row = 0
    for digit in range(group.size):
        less[digit, 0] = row
        row += 1
    lowest = 0 if group.equal else 1
    for digit in range(lowest, group.size):
        equal[1 << digit] = row
        row += 1
    products = []
    usable = sum(1 << digit for digit in range(lowest, group.size))
    for subset in range(1, 1 << group.size):
        if subset & ~usable:
            continue
        high = 1 << (subset.bit_length() - 1)
        if subset != high:
            products.append((int(equal[high]), int(equal[subset ^ high])))
            equal[subset] = row
            row += 1
    for digit in range(group.size):
        for subset in range(1, 1 << group.size):
            if subset & ((1 << (digit + 1)) - 1) == 0:
                products.append((int(less[digit, 0]), int(equal[subset])))
                less[digit, subset] = row
                row += 1
    return _Rows(equal, less, np.array(products, dtype=np.int64).reshape(-1, 2), row)


def digit_count(width: int) -> int:
    """Return how many 4-bit digits a window of `width` bits has."""
    return -(-width // DIGIT_BITS)


def is_wide(words: int) -> bool:
    """Return whether a comparison on planes of `words` words joins more digits at once."""
    return words <= FEW_WORDS


@cache
def corrected_planes(width: int, words: int) -> int:
    """Return how many planes the dealer corrects: monomials of r's digits, r's sign bit, products of masks."""
    gates = [group for level in levels(width, wide=is_wide(words)) for group in level]
    return digit_count(width) * MONOMIALS + 1 + sum(len(_rows(group).products) for group in gates)


@cache
def mask_planes(width: int, words: int) -> int:
    """Return how many planes of masks each party draws, one for each bit of an element that it opens."""
    return sum(group.masks for level in levels(width, wide=is_wide(words)) for group in level)


def deal_comparison(masks: Words, values: torch.Tensor, low: int, high: int) -> Words:
    """Return the true values of all corrected planes.

    Args:
        masks: the whole masks (both parties' XORed), (mask_planes, words).
        values: r, int64 (n,).
        low, high: the window; bit `high` is r's part of the sign.
    """
    width = high - low
    digits = digit_count(width)
    flat = values.numpy()
    bits = np.zeros((digits * DIGIT_BITS, words_for(len(flat))), dtype=np.uint64)
    bits[:width] = planes_of(flat, low, high)
    by_digit = bits.reshape(digits, DIGIT_BITS, -1)
    out = np.empty((corrected_planes(width, bits.shape[1]), bits.shape[1]), dtype=np.uint64)
    monomials = out[: digits * MONOMIALS].reshape(digits, MONOMIALS, -1)
    for subset in range(1, 16):
        top = subset.bit_length() - 1
        rest = subset ^ (1 << top)
        if rest:
            np.bitwise_and(by_digit[:, top], monomials[:, rest - 1], out=monomials[:, subset - 1])
        else:
            monomials[:, subset - 1] = by_digit[:, top]
    at = digits * MONOMIALS
    out[at] = planes_of(flat, high, high + 1)[0]
    at += 1
    start = 0
    for level in levels(width, wide=is_wide(bits.shape[1])):
        for group in level:
            rows = _rows(group)
            planes = np.empty((rows.count, bits.shape[1]), dtype=np.uint64)
            planes[: group.masks] = masks[start : start + group.masks]
            and_rows(planes, rows.products, group.masks)
            out[at : at + len(rows.products)] = planes[group.masks :]
            at += len(rows.products)
            start += group.masks
    return out


@dataclass(frozen=True)
class _Tables:
    """One level for the kernel, see `bit_planes.join_digits`; `order` picks what is opened from the level below."""

    order: np.ndarray[tuple[int], np.dtype[np.int64]]
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]]
    inputs: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    equal: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    less: np.ndarray[tuple[int, int, int], np.dtype[np.int64]]
    masks: int
    products: int


@cache
def _tables(width: int, *, wide: bool) -> tuple[_Tables, ...]:
    tables = []
    digits = digit_count(width)
    for level in levels(width, wide=wide):
        order: list[int] = []
        inputs = np.full((len(level), 2 * WIDE_GROUP), -1, dtype=np.int64)
        masks, products = sum(group.masks for group in level), 0
        equal, less = [], []
        for index, group in enumerate(level):
            rows, at = _rows(group), len(order)
            order += range(group.start, group.start + group.size)
            lowest = 0 if group.equal else 1
            order += range(digits + group.start + lowest, digits + group.start + group.size)
            inputs[index, : group.size] = range(at, at + group.size)
            inputs[index, WIDE_GROUP + lowest : WIDE_GROUP + group.size] = range(at + group.size, at + group.masks)
            # A group's rows count through its own masks and products; the kernel's through those of the whole level.
            first = masks + products
            moved = np.array([*range(at, at + group.masks), *range(first, first + len(rows.products))])
            equal.append(np.where(rows.equal >= 0, moved[rows.equal], -1))
            less.append(np.where(rows.less >= 0, moved[rows.less], -1))
            products += len(rows.products)
        sizes = np.array([group.size for group in level])
        tables.append(
            _Tables(np.array(order), sizes, inputs, np.stack(equal), np.stack(less), masks=masks, products=products)
        )
        digits = len(level)
    return tuple(tables)


def _less_by_tables(context: Context, planes: Words, masks: Words, dealt: Words, width: int) -> Words:
    """Return this party's share of the plane of [c < r] on `width` bits, from the planes of c."""
    first = context.rank == SERVER
    digits = digit_count(width)
    words = masks.shape[1]
    # Less of every digit, then equal of every digit.
    state = np.zeros((2 * digits, words), dtype=np.uint64)
    at = digits * MONOMIALS
    if not context.planning:
        if width % DIGIT_BITS:
            planes = np.concatenate([planes[:width], np.zeros((-width % DIGIT_BITS, words), dtype=np.uint64)])
        compare_digits(planes, dealt[:at], first, state[:digits], state[digits:])
    at += 1
    start = 0
    for level in _tables(width, wide=is_wide(words)):
        own = masks[start : start + level.masks]
        public = open_planes(context, state[level.order] ^ own)
        state = np.zeros((2 * len(level.sizes), words), dtype=np.uint64)
        if not context.planning:
            products = dealt[at : at + level.products]
            join_digits(public, own, products, level.sizes, level.inputs, level.equal, level.less, first, state)
        start += level.masks
        at += level.products
    less: Words = state[0]
    return less


@COMPARISONS.register("tables")
@dataclass(frozen=True)
class TableComparison(Comparison):
    """The comparison of this module: digits by dealt tables, one or two rounds."""

    def own_shapes(self) -> list[Shape]:
        """Return the shape of the masks of the bits that are opened."""
        return [(mask_planes(self.width, self.words), self.words)]

    def masked_shapes(self) -> list[Shape]:
        """Return the shape of all corrected planes."""
        return [(corrected_planes(self.width, self.words), self.words)]

    def deal(
        self, own: torch.Tensor, other: torch.Tensor, values: torch.Tensor, client: Stream
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Deal the tables of r's digits."""
        dealt = deal_comparison(planes_in(own ^ other), values, self.low, self.high)
        return [tensor_of(dealt).bitwise_xor_(client.ring(self.masked_shapes()[0]))], []

    def signs(
        self,
        context: Context,
        opened: torch.Tensor,
        own: torch.Tensor,
        dealt: torch.Tensor,
        shared: Sequence[torch.Tensor],
    ) -> Words:
        """Return the signs; see `Comparison.signs`."""
        planes: Words
        if context.planning:
            planes = np.zeros((self.width + 1, self.words), dtype=np.uint64)
        else:
            planes = planes_of(opened.numpy(), self.low, self.high + 1)
        less = _less_by_tables(context, planes, planes_in(own), planes_in(dealt), self.width)
        signs: Words = less ^ planes_in(dealt)[digit_count(self.width) * MONOMIALS]
        if context.rank == SERVER:
            signs ^= planes[self.width]
        return signs


def open_planes(context: Context, own: Words) -> Words:
    """Return the XOR of both parties' planes: one round."""
    (other,) = context.exchange([tensor_of(own)])
    opened: Words = own ^ planes_in(other)
    return opened
