"""What a protocol that compares a public with a dealt number is: what it takes from the dealer, and its signs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splitsec.mpc.bit_planes import Words, words_for
from splitsec.mpc.context import Context
from splitsec.mpc.correlation import Shape
from splitsec.mpc.prg import Stream
from splitsec.registry import Registry


@dataclass(frozen=True)
class Comparison(ABC):
    """What the signs of `count` values take, whose bits from `low` to `high` count.

    The sign of a shared z is found from the opened c = z + 2**high + r and what is dealt for r.
    """

    count: int
    low: int
    high: int

    @property
    def width(self) -> int:
        """Return the number of bits that are compared."""
        return self.high - self.low

    @property
    def words(self) -> int:
        """Return the number of words of a plane."""
        return words_for(self.count)

    @abstractmethod
    def own_shapes(self) -> list[Shape]:
        """Return the shapes of what each party draws."""

    @abstractmethod
    def masked_shapes(self) -> list[Shape]:
        """Return the shapes of what is dealt in shares."""

    def shared_shapes(self) -> list[Shape]:
        """Return the shapes of what both parties get alike."""
        return []

    @abstractmethod
    def deal(
        self, own: torch.Tensor, other: torch.Tensor, values: torch.Tensor, client: Stream
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the server's shares of `masked_shapes`, and what both get, for r (`values`) and both parties' own."""

    @abstractmethod
    def signs(
        self,
        context: Context,
        opened: torch.Tensor,
        own: torch.Tensor,
        dealt: torch.Tensor,
        shared: Sequence[torch.Tensor],
    ) -> Words:
        """Return this party's share of the plane of [z >= 0], where c = z + 2**high + r, |z| < 2**high - 2**low.

        Exact up to what lies below bit `low`: it is the sign of (c >> low) - (r >> low) - 2**(high - low), which is
        z >> low or that plus one.

        Args:
            opened: c, int64 (n,).
            own, dealt, shared: this party's parts, of the shapes above.
        """


COMPARISONS: Registry[type[Comparison]] = Registry("comparison", package="splitsec.mpc.protocols")


def comparison_of(kind: str, count: int, low: int, high: int) -> Comparison:
    """Return the comparison of a kind; raises `ConfigError` for one that is not registered."""
    return COMPARISONS.get(kind)(count, low, high)
