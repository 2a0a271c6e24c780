"""A query's plan: the correlations that its program takes, in order.

A plan holds shapes and no values. The two parties derive it from the same program, the dealer compares both, deals it
and learns no more than it says. Corrections to one party: "pseudorandom correlations" with a dealer, as in E. Boyle
et al., "Function secret sharing for mixed-mode and fixed-point secure computation", EUROCRYPT 2021, section 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import msgspec
import torch

from splitsec.errors import MessageError, first_line
from splitsec.mpc.correlation import Correlation, Masks, Plan, Shape
from splitsec.mpc.prg import Stream
from splitsec.mpc.protocols.linear import laid_out
from splitsec.mpc.protocols.shared_linear import SharedLinear, SharedWeight, mask_of
from splitsec.transport.fields import MAX_DIMENSIONS, MAX_SIZE

# As corrections they take a gigabyte.
MAX_ELEMENTS = 1 << 27
# Of a plan: a network of 300 layers takes 400, and attention some 100 a layer.
MAX_ITEMS = 10_000
# A part of the corrections is sent as soon as it has this many ring elements.
PART_ELEMENTS = 1 << 15
# The stream of the server's seed that masks the weights; queries count up from 0 and never come here.
WEIGHT_STREAM = (1 << 64) - 1


def plan_digest(plan: Plan) -> bytes:
    """Return a fingerprint of a plan: equal for both parties of a session, or the dealer refuses."""
    return hashlib.sha256(msgspec.msgpack.encode(plan)).digest()


def check_plan(plan: Plan) -> None:
    """Raise `MessageError` for a plan that no program makes: impossible shapes, or too many elements.

    Takes milliseconds for any plan that fits a message, and makes no tensor.
    """
    if len(plan) > MAX_ITEMS:
        raise MessageError(f"a plan of {len(plan)} correlations; at most {MAX_ITEMS} are dealt")
    total = 0
    for item in plan:
        sizes = [value for value in msgspec.structs.asdict(item).values() if isinstance(value, tuple)]
        if any(len(shape) > MAX_DIMENSIONS for shape in sizes):
            raise MessageError(f"a plan with more than {MAX_DIMENSIONS} dimensions")
        if any(not 0 <= size < MAX_SIZE for shape in sizes for size in shape):
            raise MessageError("a plan with an impossible size")
        total += sum(math.prod(shape) for shape in sizes)
        try:
            item.check()
            total += sum(math.prod(shape) for shape in item.correction_shapes())
        except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise MessageError(f"a plan whose shapes do not fit: {first_line(error)}") from None
        if total > MAX_ELEMENTS:
            raise MessageError(f"a plan of more than {MAX_ELEMENTS} ring elements; ask for a smaller batch")


def weight_masks(plan: Plan, server_seed: bytes) -> dict[int, torch.Tensor]:
    """Return the mask of each layer's weights that the server knows, by layer number, from its seed with the dealer."""
    stream = Stream(server_seed, WEIGHT_STREAM)
    own = tuple(item for item in plan if not isinstance(item, SharedLinear))
    return {layer: laid_out(stream.ring(shape)) for layer, shape in weight_shapes(own).items()}


def shared_masks(plan: Plan, owner_seeds: Callable[[str], bytes]) -> dict[int, torch.Tensor]:
    """Return, at the dealer, the mask of each layer's weights that no party of the session knows, by layer number."""
    items = {item.layer: item for item in plan if isinstance(item, SharedLinear)}
    return {
        layer: laid_out(
            mask_of(owner_seeds(item.owner), SharedWeight(layer, item.owner, item.source, item.weight, ())).weight
        )
        for layer, item in items.items()
    }


def weight_shapes(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Return the shapes of weights that are masked once a session, by layer number, in the order of the plan."""
    return dict(entry for entry in (item.weight_shape() for item in plan) if entry is not None)


def deal(
    plan: Plan, server_seed: bytes, client_seed: bytes, query: int, masks: Masks, *, rank: int = 0
) -> Iterator[torch.Tensor]:
    """Yield a party's corrections of a query in the plan's order, flat int64, in parts that each cover whole tensors.

    Parts can be sent while later ones are computed. Every query has at least one, and only a query without any
    corrections has an empty one.
    """
    server, client = Stream(server_seed, query), Stream(client_seed, query)
    small: list[torch.Tensor] = []
    sent = False
    for item in plan:
        corrections = item.deal(server, client, masks)
        if rank != 0:
            corrections = corrections[len(corrections) - len(item.shared_shapes()) :]
        for part in corrections:
            # Small ones travel together; to copy large ones would take as long as to make them.
            if 0 < part.numel() < PART_ELEMENTS:
                small.append(part.reshape(-1))
            if small and (part.numel() >= PART_ELEMENTS or sum(tensor.numel() for tensor in small) >= PART_ELEMENTS):
                yield torch.cat(small)
                small, sent = [], True
            if part.numel() >= PART_ELEMENTS:
                yield part.view(-1)
                sent = True
    if small or not sent:
        yield torch.cat([*small, torch.empty(0, dtype=torch.int64)])


def correction_count(plan: Plan, rank: int = 0) -> int:
    """Return how many ring elements the dealer sends a party for one query."""
    return sum(math.prod(shape) for item in plan for shape in _received_shapes(item, rank))


@lru_cache(maxsize=4096)
def _received_shapes(item: Correlation, rank: int) -> tuple[Shape, ...]:
    return tuple(item.correction_shapes() if rank == 0 else item.shared_shapes())


def expand(
    plan: Plan,
    rank: int,
    seed: bytes,
    query: int,
    corrections: Iterable[torch.Tensor] | None = None,
    masks: Masks | None = None,
) -> list[list[torch.Tensor]]:
    """Return this party's parts of one query, a list for each correlation.

    Args:
        masks: for rank 1, the masked weights by layer number.
        corrections: the parts that the dealer sent, see `deal`; None where it sends this party none.

    Raises:
        MessageError: the dealer's corrections do not fit the plan.
    """
    stream = Stream(seed, query)
    if corrections is None:
        if correction_count(plan, rank):
            raise MessageError(f"party {rank} needs the dealer's corrections")
        corrections = ()
    parts: list[list[torch.Tensor]] = []
    received = iter(corrections)
    left = torch.empty(0, dtype=torch.int64)
    for item in plan:
        own = []
        for shape in _received_shapes(item, rank):
            count = math.prod(shape)
            if count and not left.numel():
                left = next(received, left)
            if left.numel() < count:
                raise MessageError(f"the dealer's corrections end after {left.numel()} of {count} elements")
            own.append(left[:count].view(shape))
            left = left[count:]
        parts.append(item.expand(rank, stream, own, masks or {}))
    if left.numel() or any(rest.numel() for rest in received):
        raise MessageError("the dealer sent more corrections than the plan takes")
    return parts


def query_bytes(plan: Plan, rank: int) -> int:
    """Return how many bytes one query's randomness takes in a party's memory."""
    return 8 * sum(math.prod(shape) for item in plan for shape in item.part_shapes(rank))
