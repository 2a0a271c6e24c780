"""What every kind of correlated randomness has in common.

Each party shares one seed with the dealer and reads its part of a correlation from the stream of the query; only what
both streams do not already fix is sent, as one correction to party 0 (the server). Party 1 (the client) needs no
message, but for the keys of comparison functions (`dcf`), which both parties get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import msgspec
import torch

from splitsec.mpc.prg import Stream
from splitsec.registry import Registry
from splitsec.transport.fields import Sizes

Shape: TypeAlias = Sizes
# Masks of a model's weights by layer number: at the dealer the masks, at the client the masked weights, at the server
# nothing, since it needs neither here.
Masks: TypeAlias = Mapping[int, torch.Tensor]
CorrelationT = TypeVar("CorrelationT", bound="Correlation")


class Correlation(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all kinds. Parts are int64 tensors; `deal` and the two `expand` calls read the streams alike."""

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        """Return the corrections for party 0, computed by the dealer from both streams."""
        raise NotImplementedError

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        """Return this party's parts: party 0 passes the dealer's corrections, party 1 the shared ones."""
        raise NotImplementedError

    def correction_shapes(self) -> list[Shape]:
        """Return the shapes of what `deal` returns, so that party 0 can check what it receives."""
        raise NotImplementedError

    def shared_shapes(self) -> list[Shape]:
        """Return the shapes of the last corrections, those that party 1 gets as well: none but for `dcf`."""
        return []

    def part_shapes(self, rank: int) -> list[Shape]:
        """Return the shapes of what `expand` returns to party `rank`."""
        raise NotImplementedError

    def zeros(self, rank: int) -> list[torch.Tensor]:
        """Return zeros in the shapes of the parts, for a run that only plans."""
        return [torch.zeros(shape, dtype=torch.int64) for shape in self.part_shapes(rank)]

    def weight_shape(self) -> tuple[int, Shape] | None:
        """Return number and shape of the layer whose masked weight this correlation uses, if any."""
        return None

    def check(self) -> None:
        """Raise `ValueError` for a description that no program makes."""


# By the tag that a kind has in a plan, its class's name.
CORRELATIONS: Registry[type[Correlation]] = Registry("correlation", package="splitsec.mpc.protocols")


def correlation(kind: type[CorrelationT]) -> type[CorrelationT]:
    """Register a kind of correlation, so that plans that ask for it are read and dealt."""
    CORRELATIONS.register(kind.__name__)(kind)
    return kind


# Correlations in the order in which a query takes them.
Plan: TypeAlias = tuple[Correlation, ...]


class WirePlan(tuple[Correlation, ...]):
    """A plan as it comes over the wire.

    A decoder knows only what it is given when it is made; so that other packages may add kinds, a plan is read by those
    that are registered when it comes.
    """

    __slots__ = ()

    @classmethod
    def from_wire(cls, items: Any) -> WirePlan:
        """Read a plan; raises `msgspec.ValidationError` for an item that no kind describes."""
        return cls(msgspec.convert(items, _plan_type(tuple(CORRELATIONS))))


@lru_cache(maxsize=8)
def _plan_type(kinds: tuple[type[Correlation], ...]) -> Any:
    union: Any = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return tuple[union, ...]


class Masked(Correlation, frozen=True):
    """A kind with three sorts of parts: drawn by a party for itself, dealt in shares, and dealt to both alike.

    What is dealt is a function of what both parties drew.
    """

    def own_shapes(self) -> list[Shape]:
        """Return the shapes of what each party draws for itself."""
        raise NotImplementedError

    def masked_shapes(self) -> list[Shape]:
        """Return the shapes of what is dealt in shares: the client draws its share from its stream."""
        raise NotImplementedError

    def draw_own(self, stream: Stream) -> list[torch.Tensor]:
        """Draw a party's own tensors from its stream."""
        return [stream.ring(shape) for shape in _own_shapes(self)]

    def correction_shapes(self) -> list[Shape]:
        return [*self.masked_shapes(), *self.shared_shapes()]

    def part_shapes(self, rank: int) -> list[Shape]:
        return [*self.own_shapes(), *self.correction_shapes()]

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        own = self.draw_own(stream)
        drawn = [] if rank == 0 else [stream.ring(shape) for shape in _masked_shapes(self)]
        return [*own, *drawn, *corrections]


# A plan asks for the same shapes at every query.
@lru_cache(maxsize=4096)
def _own_shapes(item: Masked) -> tuple[Shape, ...]:
    return tuple(item.own_shapes())


@lru_cache(maxsize=4096)
def _masked_shapes(item: Masked) -> tuple[Shape, ...]:
    return tuple(item.masked_shapes())
