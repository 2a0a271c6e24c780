"""What a two-party protocol needs of its surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from splitsec.mpc.ring import PRECISION_BITS

if TYPE_CHECKING:
    from splitsec.mpc.correlation import Correlation

SERVER = 0
CLIENT = 1


@dataclass(frozen=True)
class Arithmetic:
    """How two parties compute.

    Attributes:
        precision: fractional bits of a value.
        comparison: how values are compared, see `protocols.compare.Comparison`.
    """

    precision: int = PRECISION_BITS
    comparison: str = "tables"


USUAL = Arithmetic()


class Context(Protocol):
    """What a two-party protocol needs: who it is, correlations, and a way to exchange masked values."""

    @property
    def rank(self) -> int:
        """Return whose half this is, `SERVER` or `CLIENT`."""
        ...

    @property
    def precision(self) -> int:
        """Return the fractional bits of a value."""
        ...

    @property
    def comparison(self) -> str:
        """Return how values are compared in this session; see `protocols.compare.Comparison`."""
        ...

    @property
    def planning(self) -> bool:
        """Return whether this is a run on zeros that only asks what is needed, so that arithmetic may be left out."""
        ...

    def take(self, item: Correlation) -> list[torch.Tensor]:
        """Return this party's parts of the next correlation of the plan, which must be `item`."""
        ...

    def exchange(self, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Send int64 tensors to the peer and return its tensors of the same shapes: one round."""
        ...

    def collect(self, own: torch.Tensor, to: int) -> torch.Tensor | None:
        """Send an int64 tensor to party `to`, which gets the peer's; the sender gets None."""
        ...

    def common(self, shape: Sequence[int]) -> torch.Tensor:
        """Return ring elements that only the two parties know, and both do: masks of an input's share."""
        ...
