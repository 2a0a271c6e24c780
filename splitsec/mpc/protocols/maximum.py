"""The maximum of a few values on shares, and of the values and zero: max pooling, with its ReLU, in five rounds.

All pairs are compared at once: the differences of opened masked values are masked by the differences of their masks,
which the dealer knows, so one opening serves every pair and the truncation too. A value is the largest if it wins all
its comparisons, a product of up to four bits; the winner is then selected as in `relu`. What is compared are the
truncated values, which the opening fixes (c >> shift minus r >> shift, with one wrap-around), to the last bit, so that
there is one winner, ties included: of equal values the first wins.

Products of many bits in one opening: A. Patra, T. Schneider, A. Suresh, H. Yalame, "ABY2.0", USENIX Security 2021,
section 3.1, with masks and products from the dealer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.nn.functional import pad

from splitsec.mpc.bit_planes import WORD, and_rows, bits_of, conjunctions, planes_in, tensor_of, words_for
from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Masked, Masks, Shape, correlation
from splitsec.mpc.prg import Stream
from splitsec.mpc.protocols.compare import open_planes
from splitsec.mpc.protocols.comparison import Comparison, comparison_of
from splitsec.mpc.protocols.relu import deal_selection, select_value, selection_shapes
from splitsec.mpc.protocols.truncate import truncate
from splitsec.mpc.ring import HEADROOM_BITS, shift_right

MOST = 4
FEW_WINDOWS = 16_384


@dataclass(frozen=True)
class _Contest:
    """Who is compared with whom: rows of `inputs` are the candidates, entries the comparisons that each must win."""

    pairs: tuple[tuple[int, int], ...]
    inputs: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    flips: np.ndarray[tuple[int, int], np.dtype[np.uint64]]
    rows: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    products: np.ndarray[tuple[int, int], np.dtype[np.int64]]


@cache
def _contest(size: int, *, zero: bool) -> _Contest:
    """Plan the pairs: (i, j) asks whether value i is at least value j, (i, -1) whether it is at least zero."""
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)] + [(i, -1) for i in range(size) if zero]
    wins: list[list[tuple[int, bool]]] = [[] for _ in range(size)]
    for row, (i, j) in enumerate(pairs):
        wins[i].append((row, False))
        if j >= 0:
            wins[j].append((row, True))
    inputs = np.array([[row for row, _ in entries] for entries in wins], dtype=np.int64)
    flips = np.array([[0xFFFFFFFFFFFFFFFF if lost else 0 for _, lost in entries] for entries in wins], dtype=np.uint64)
    rows = np.full((size, 16), -1, dtype=np.int64)
    products: list[tuple[int, int]] = []
    for candidate in range(size):
        for subset in range(1, 1 << inputs.shape[1]):
            high = 1 << (subset.bit_length() - 1)
            if subset == high:
                rows[candidate, subset] = inputs[candidate, subset.bit_length() - 1]
            else:
                products.append((int(rows[candidate, high]), int(rows[candidate, subset ^ high])))
                rows[candidate, subset] = len(pairs) + len(products) - 1
    factors = np.array(products, dtype=np.int64).reshape(-1, 2)
    return _Contest(tuple(pairs), inputs, flips, rows, factors)


@correlation
class MaxMask(Masked, frozen=True):
    """What the maximum of `size` values takes, for `count` windows at once.

    Args:
        count: windows.
        size: values a window, 1 to 4.
        zero: whether zero takes part, so that the result is the ReLU of the maximum.
        shift: fractional bits to drop; 0 keeps the scale.
        high: every value and every difference is below 2**high - 2**(shift + 1) in magnitude; at most 62.
    """

    count: int
    size: int
    zero: bool
    shift: int
    high: int
    kind: str = "tables"

    @property
    def words(self) -> int:
        """Return the number of words of a plane of one candidate; candidates are padded to whole words."""
        return words_for(self.count)

    @property
    def padded(self) -> int:
        """Return the number of elements of a candidate, padding included."""
        return self.words * WORD

    @property
    def comparison(self) -> Comparison:
        """Return the comparison of all pairs at once, as truncated values."""
        pairs = len(_contest(self.size, zero=self.zero).pairs)
        return comparison_of(self.kind, pairs * self.padded, 0, self.high - self.shift)

    def own_shapes(self) -> list[Shape]:
        """Return the shapes of r, of what the comparison takes, of masks of its results, and of the plane of t."""
        pairs = len(_contest(self.size, zero=self.zero).pairs)
        own = [(self.size, self.padded), *self.comparison.own_shapes()]
        return [*own, (pairs, self.words), (1, self.size * self.words)]

    def masked_shapes(self) -> list[Shape]:
        """Return the shapes of what the comparison takes, of products of masks, and of what the selection takes."""
        products = (len(_contest(self.size, zero=self.zero).products), self.words)
        selected = selection_shapes(self.shift, self.size * self.padded)
        return [*self.comparison.masked_shapes(), products, *selected]

    def shared_shapes(self) -> list[Shape]:
        return self.comparison.shared_shapes()

    def check(self) -> None:
        fits = self.count > 0 and 1 <= self.size <= MOST and self.size + self.zero > 1
        if not (fits and 0 <= self.shift < self.high <= HEADROOM_BITS):
            raise ValueError(f"a maximum of {self.size} values in {self.count} windows, {self.high} bits")

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        (r, own, wins, choice), (r1, own1, wins1, choice1) = self.draw_own(server), self.draw_own(client)
        r, contest = r + r1, _contest(self.size, zero=self.zero)
        asked = differences(_truncated(r, self.shift), contest.pairs)
        masked, shared = self.comparison.deal(own, own1, asked, client)
        planes = np.empty((len(contest.pairs) + len(contest.products), self.words), dtype=np.uint64)
        planes[: len(contest.pairs)] = planes_in(wins ^ wins1)
        and_rows(planes, contest.products, len(contest.pairs))
        products = tensor_of(planes[len(contest.pairs) :])
        products ^= client.ring(products.shape)
        bits = bits_of(planes_in(choice ^ choice1)[0], r.numel())
        selected = deal_selection(client, r.reshape(-1), bits, self.shift)
        return [*masked, products, *selected, *shared]


def _truncated(values: torch.Tensor, shift: int) -> torch.Tensor:
    return shift_right(values, shift) if shift else values


def differences(values: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return value i minus value j for every pair, or value i where j is -1: int64 (size, n) to (pairs * n,)."""
    out = torch.empty(len(pairs), values.shape[1], dtype=torch.int64)
    for row, (i, j) in enumerate(pairs):
        if j < 0:
            out[row] = values[i]
        else:
            torch.sub(values[i], values[j], out=out[row])
    return out.view(-1)


def maximum(
    context: Context, share: torch.Tensor, *, zero: bool, shift: int = 0, high: int = HEADROOM_BITS
) -> torch.Tensor:
    """Return shares of the largest of each window's values (and of zero), divided by 2**shift.

    Args:
        share: int64 (size, windows), 1 to 4 values a window; magnitudes and differences below
            2**high - 2**(shift + 1).
        zero: take zero as one of the values.
        shift: fractional bits to drop; the result is off by at most one unit in the last place, exact where 0.

    Returns:
        int64 (windows,). Rounds: one to open, two for the comparisons, one to find the winner (none if a single
        comparison decides), one to select it.
    """
    size, count = share.shape
    item = MaxMask(count, size, zero, shift, high, context.comparison)
    contest = _contest(size, zero=zero)
    mask, own, wins, choices, dealt, products, *rest = context.take(item)
    selected, shared = rest[: len(selection_shapes(shift, 1))], rest[len(selection_shapes(shift, 1)) :]
    win_masks = planes_in(wins)
    masked = pad(share, (0, item.padded - count)) + mask
    (other,) = context.exchange([masked])
    opened = masked + other
    public = _truncated(opened + (1 << HEADROOM_BITS), shift) - (1 << (HEADROOM_BITS - shift))
    asked = differences(public, contest.pairs) + (1 << item.comparison.width)
    won = item.comparison.signs(context, asked, own, dealt, shared).reshape(len(contest.pairs), item.words)
    winners = np.zeros((size, item.words), dtype=np.uint64)
    first = context.rank == SERVER
    if contest.inputs.shape[1] > 1:
        shown = open_planes(context, won ^ win_masks)
        if not context.planning:
            conjunctions(
                shown, win_masks, planes_in(products), contest.inputs, contest.flips, contest.rows, first, winners
            )
    else:
        winners = won[contest.inputs[:, 0]] ^ (contest.flips if first else np.uint64(0))
    choice = open_planes(context, winners.reshape(1, -1) ^ planes_in(choices))[0]
    if context.planning:
        return torch.zeros(count, dtype=torch.int64)
    chosen = select_value(context, opened.view(-1), choice, mask.view(-1), selected, shift)
    return chosen.view(size, -1).sum(0)[:count]


def largest(
    context: Context, candidates: torch.Tensor, *, zero: bool, shift: int = 0, high: int = HEADROOM_BITS
) -> torch.Tensor:
    """Return `maximum` for any number of values: up to four at a time until one is left.

    Args:
        candidates: int64 (size, windows); the others as in `maximum`.

    Returns:
        int64 (windows,).
    """
    # Values that were moved about lie in another order of memory.
    candidates = candidates.contiguous()
    # Two at a time take half the comparisons and more rounds: the better choice where bytes count, not rounds.
    most = MOST if candidates.shape[1] <= FEW_WINDOWS else 2
    while len(candidates) > 1 or zero:
        last = len(candidates) <= most
        groups = -(-len(candidates) // most)
        size = -(-len(candidates) // groups)
        missing = groups * size - len(candidates)
        if missing:
            # A candidate more often changes no maximum.
            candidates = torch.cat([candidates, candidates[-1:].expand(missing, -1)])
        windows = candidates.view(groups, size, -1).transpose(0, 1).reshape(size, -1)
        winners = maximum(context, windows, zero=zero and last, shift=shift, high=high)
        candidates, zero, high, shift = winners.view(groups, -1), zero and not last, high - shift, 0
    return truncate(context, candidates[0], shift) if shift else candidates[0]
