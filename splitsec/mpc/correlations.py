"""Correlated randomness: what a query may ask of the dealer, and how each party gets its part.

Each party shares one seed with the dealer and reads its part of a correlation from the stream of the query; only
what both streams do not already fix is sent, as one correction to party 0 (the server). Party 1 (the client) needs
no message at all. A correlation is a small description without values, so a list of them is the query's plan: the
two parties derive it from the same program and the dealer compares both.

Beaver triples: D. Beaver, "Efficient multiparty protocols using circuit randomization", CRYPTO 1991; the dealer that
sends one correction: "pseudorandom correlations" as in E. Boyle et al., "Function secret sharing for mixed-mode and
fixed-point secure computation", EUROCRYPT 2021, section 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec
import torch

from splitsec.errors import MessageError
from splitsec.mpc.prg import Stream
from splitsec.mpc.ring import shift_right, top_bit
from splitsec.transport.codec import expect_tensor

Shape: TypeAlias = tuple[int, ...]
MAX_ELEMENTS = 1 << 28


class Correlation(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all kinds. Parts are int64 tensors; `deal` and the two `expand` calls read the streams alike."""

    def deal(self, server: Stream, client: Stream) -> list[torch.Tensor]:
        """The corrections for party 0, computed by the dealer from both streams."""
        raise NotImplementedError

    def expand(self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """This party's parts: party 0 passes the dealer's corrections, party 1 an empty list."""
        raise NotImplementedError

    def correction_shapes(self) -> list[Shape]:
        """Shapes of what `deal` returns, so that party 0 can check what it receives."""
        raise NotImplementedError


class _Products(Correlation, frozen=True):
    """Shares of random inputs, and of outputs that are a function of those inputs."""

    def _inputs(self) -> list[Shape]:
        raise NotImplementedError

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def _draw(self, stream: Stream, shape: Shape) -> torch.Tensor:
        return stream.ring(shape)

    def _join(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one + other

    def _part(self, whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return whole - other

    def deal(self, server: Stream, client: Stream) -> list[torch.Tensor]:
        whole = [self._join(self._draw(server, shape), self._draw(client, shape)) for shape in self._inputs()]
        return [self._part(out, client.ring(out.shape)) for out in self._outputs(*whole)]

    def expand(self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        inputs = [self._draw(stream, shape) for shape in self._inputs()]
        if rank == 0:
            return [*inputs, *corrections]
        return [*inputs, *(stream.ring(shape) for shape in self.correction_shapes())]


class Triple(_Products, frozen=True):
    """a, b and op(a, b) for the product of two shared tensors (Beaver 1991); ops are torch's own."""

    op: Literal["mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"]
    left: Shape
    right: Shape
    stride: Shape = (1,)
    padding: Shape = (0,)
    dilation: Shape = (1,)
    groups: int = 1

    def _inputs(self) -> list[Shape]:
        return [self.left, self.right]

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self._apply(*inputs)]

    def correction_shapes(self) -> list[Shape]:
        left, right = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in (self.left, self.right))
        if self.op in ("mul", "matmul"):
            return [tuple(self._apply(left, right).shape)]
        return [tuple(self._apply(left.float(), right.float()).shape)]

    def _apply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if self.op in ("mul", "matmul"):
            return getattr(torch, self.op)(left, right)  # type: ignore[no-any-return]
        return getattr(torch, self.op)(  # type: ignore[no-any-return]
            left,
            right,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class SquarePair(_Products, frozen=True):
    """r and r*r."""

    shape: Shape

    def _inputs(self) -> list[Shape]:
        return [self.shape]

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [inputs[0] * inputs[0]]

    def correction_shapes(self) -> list[Shape]:
        return [self.shape]


class BinaryTriple(_Products, frozen=True):
    """a, b and a & b in XOR sharing, 64 bits an element."""

    left: Shape
    right: Shape

    def _inputs(self) -> list[Shape]:
        return [self.left, self.right]

    def _join(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one ^ other

    def _part(self, whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return whole ^ other

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [inputs[0] & inputs[1]]

    def correction_shapes(self) -> list[Shape]:
        return [tuple(torch.broadcast_shapes(self.left, self.right))]


class RandomBit(_Products, frozen=True):
    """A bit in XOR sharing and the same bit in additive sharing."""

    shape: Shape

    def _inputs(self) -> list[Shape]:
        return [self.shape]

    def _draw(self, stream: Stream, shape: Shape) -> torch.Tensor:
        return stream.bits(shape)

    def _join(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one ^ other

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [inputs[0]]

    def correction_shapes(self) -> list[Shape]:
        return [self.shape]


class Truncation(_Products, frozen=True):
    """A mask r, r >> bits and msb(r), for `truncate`."""

    shape: Shape
    bits: int

    def _inputs(self) -> list[Shape]:
        return [self.shape]

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [shift_right(inputs[0], self.bits), top_bit(inputs[0])]

    def correction_shapes(self) -> list[Shape]:
        return [self.shape, self.shape]


AnyCorrelation: TypeAlias = Triple | SquarePair | BinaryTriple | RandomBit | Truncation
Plan: TypeAlias = tuple[AnyCorrelation, ...]


def plan_digest(plan: Plan) -> bytes:
    """A fingerprint of a plan: equal for both parties of a session, or the dealer refuses."""
    return hashlib.sha256(msgspec.msgpack.encode(plan)).digest()


def check_plan(plan: Plan) -> None:
    """Raise `MessageError` for a plan that no program makes: impossible shapes, or more than 2**28 elements."""
    total = 0
    for item in plan:
        shapes = [value for value in msgspec.structs.asdict(item).values() if isinstance(value, tuple)]
        if any(size < 0 for shape in shapes for size in shape):
            raise MessageError("a plan with a negative size")
        if isinstance(item, Triple):
            total += math.prod(item.left) + math.prod(item.right)
        try:
            total += sum(math.prod(shape) for shape in item.correction_shapes())
        except (RuntimeError, TypeError, ValueError) as error:
            raise MessageError(f"a plan whose shapes do not fit: {str(error).splitlines()[0]}") from None
        if isinstance(item, Truncation) and not 0 < item.bits < 62:
            raise MessageError(f"a truncation by {item.bits} bits")
        if total > MAX_ELEMENTS:
            raise MessageError(f"a plan of more than {MAX_ELEMENTS} ring elements; ask for a smaller batch")


def deal(plan: Plan, server_seed: bytes, client_seed: bytes, query: int) -> torch.Tensor:
    """All corrections of one query, flat int64 in the order of the plan."""
    server, client = Stream(server_seed, query), Stream(client_seed, query)
    corrections = [part.reshape(-1) for item in plan for part in item.deal(server, client)]
    return torch.cat(corrections) if corrections else torch.empty(0, dtype=torch.int64)


def correction_count(plan: Plan) -> int:
    """How many ring elements the dealer sends for one query."""
    return sum(math.prod(shape) for item in plan for shape in item.correction_shapes())


def expand(
    plan: Plan, rank: int, seed: bytes, query: int, corrections: torch.Tensor | None = None
) -> list[list[torch.Tensor]]:
    """This party's parts of one query, one list a correlation.

    Args:
        corrections: for rank 0, what the dealer sent: flat int64 of `correction_count(plan)` elements.

    Raises:
        MessageError: the dealer's corrections do not fit the plan.
    """
    stream = Stream(seed, query)
    if rank == 1:
        return [item.expand(1, stream, ()) for item in plan]
    if corrections is None:
        raise MessageError("party 0 needs the dealer's corrections")
    expect_tensor(corrections, what="the dealer's corrections", dtype=torch.int64, shape=(correction_count(plan),))
    parts, at = [], 0
    for item in plan:
        mine = []
        for shape in item.correction_shapes():
            count = math.prod(shape)
            mine.append(corrections[at : at + count].view(shape))
            at += count
        parts.append(item.expand(0, stream, mine))
    return parts
