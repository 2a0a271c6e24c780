"""What every kind of correlated randomness has in common.

Each party shares one seed with the dealer and reads its part of a correlation from the stream of the query; only what
both streams do not already fix is sent, as one correction to party 0 (the server). Party 1 (the client) needs no
message, but for the keys of comparison functions (`dcf`), which both parties get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import msgspec
import torch

from splitsec.mpc.prg import Stream
from splitsec.transport.fields import Sizes

Shape: TypeAlias = Sizes
# Masks of a model's weights by layer number: at the dealer the masks, at the client the masked weights, at the server
# nothing, since it needs neither here.
Masks: TypeAlias = Mapping[int, torch.Tensor]


class Correlation(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all kinds. Parts are int64 tensors; `deal` and the two `expand` calls read the streams alike."""

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        """The corrections for party 0, computed by the dealer from both streams."""
        raise NotImplementedError

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        """This party's parts: party 0 passes the dealer's corrections, party 1 the shared ones."""
        raise NotImplementedError

    def correction_shapes(self) -> list[Shape]:
        """Shapes of what `deal` returns, so that party 0 can check what it receives."""
        raise NotImplementedError

    def shared_shapes(self) -> list[Shape]:
        """Shapes of the last corrections, those that party 1 gets as well: none but for `dcf`."""
        return []

    def part_shapes(self, rank: int) -> list[Shape]:
        """Shapes of what `expand` returns to party `rank`."""
        raise NotImplementedError

    def zeros(self, rank: int) -> list[torch.Tensor]:
        """Parts of the right shapes that hold nothing: what a planning run gets."""
        return [torch.zeros(shape, dtype=torch.int64) for shape in self.part_shapes(rank)]

    def weight_shape(self) -> tuple[int, Shape] | None:
        """Number and shape of the layer whose masked weight this correlation uses, if any."""
        return None

    def check(self) -> None:
        """Raise `ValueError` for a description that no program makes."""


class Masked(Correlation, frozen=True):
    """A kind whose parts are tensors of a party's own, shares of what the dealer makes of both parties' own, and what
    it gives to both alike."""

    def own_shapes(self) -> list[Shape]:
        """Shapes of what each party draws for itself."""
        raise NotImplementedError

    def masked_shapes(self) -> list[Shape]:
        """Shapes of what is shared: the client draws its share."""
        raise NotImplementedError

    def draw_own(self, stream: Stream) -> list[torch.Tensor]:
        """A party's own tensors from its stream."""
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
