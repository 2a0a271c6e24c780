"""Both parties of a protocol in two threads of one process, over a socket pair, with the dealer between them.

For demonstrations, simulations and audits: the messages are those of two processes, and who sees the process sees
everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
import zmq

from splitsec.mpc.context import CLIENT, SERVER, USUAL, Arithmetic, Context
from splitsec.mpc.correlation import Masks, Plan
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.session.messages import session_codec
from splitsec.mpc.session.plan import deal, weight_masks
from splitsec.mpc.session.session import Cost, Planner, Session, SessionSeeds
from splitsec.transport import Peer

# What a party does in a query with this number.
Protocol: TypeAlias = Callable[[Context, int], Any]
SessionT = TypeVar("SessionT", bound=Session)


@dataclass
class Paired:
    """Results of both parties and what the server saw, with an entry for each query.

    Attributes:
        server, client: what the protocol returned to each.
        seen: everything that the server received, and what it knows from that and its own message, int64 vectors.
        cost: the client's, of one query.
    """

    server: list[Any]
    client: list[Any]
    seen: list[torch.Tensor] = field(repr=False)
    cost: Cost


class _Watched(Session):
    """A session that keeps what this party received, and the sums with what it sent in the same round."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[torch.Tensor] = []

    def exchange(self, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        received = super().exchange(own)
        self.seen += [sent.reshape(-1) + other.reshape(-1) for sent, other in zip(own, received, strict=True)]
        return received

    def _receive(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tensors = super()._receive(like)
        self.seen += [tensor.reshape(-1).clone() for tensor in tensors]
        return tensors

    def take_seen(self) -> torch.Tensor:
        seen, self.seen = torch.cat([*self.seen, torch.empty(0, dtype=torch.int64)]), []
        return seen


def run_pair(
    protocol: Protocol,
    *,
    queries: int = 1,
    weights: Mapping[int, torch.Tensor] | None = None,
    timeout: float = 60.0,
) -> Paired:
    """Run `protocol(context, query)` as both parties, query after query in one session.

    Args:
        weights: the server's encoded weights by layer number, of which the client gets the masked ones.
    """
    planner = Planner(CLIENT)
    protocol(planner, 0)
    seeds = (fresh_seed(), fresh_seed())
    outcome = Paired([], [], [], planner.cost)

    def party(session: _Watched) -> None:
        results = (outcome.server, outcome.client)[session.rank]
        for query in range(queries):
            session.begin(session.prepare())
            results.append(protocol(session, query))
            session.end()
            seen = session.take_seen()
            if session.rank == SERVER:
                outcome.seen.append(seen)

    dealt = Dealt(planner.plan, seeds, weight_masks(planner.plan, seeds[SERVER]))
    in_threads(_Watched, party, dealt, weights=weights, timeout=timeout)
    return outcome


@dataclass(frozen=True)
class Dealt:
    """What a dealer gives two parties, computed by whoever holds both seeds.

    Attributes:
        plan: correlations of one query.
        seeds: what each party shares with the dealer, the server's first.
        masks: of the server's weights by layer number, as `weight_masks` gives them.
    """

    plan: Plan
    seeds: Sequence[bytes] = field(repr=False)
    masks: Masks = field(repr=False)

    def corrections(self, rank: int, query: int) -> Iterator[torch.Tensor]:
        """Return a party's corrections of a query, part by part."""
        return deal(self.plan, self.seeds[SERVER], self.seeds[CLIENT], query, self.masks, rank=rank)


def in_threads(
    kind: type[SessionT],
    party: Callable[[SessionT], None],
    dealt: Dealt,
    *,
    weights: Mapping[int, torch.Tensor] | None = None,
    timeout: float = 60.0,
    arithmetic: Arithmetic = USUAL,
) -> list[SessionT]:
    """Let both parties do `party(session)`, each in a thread, and return their sessions, server first.

    Args:
        dealt: what a dealer would give them.
        weights: the server's encoded weights by layer number, of which the client gets the masked ones.
        arithmetic: how both compute.

    Raises:
        BaseException: what the first party raised that failed.
    """
    pair = fresh_seed()
    masked = {layer: (weights or {})[layer] - mask for layer, mask in dealt.masks.items()}
    context = zmq.Context()
    ends = [context.socket(zmq.PAIR) for _ in range(2)]
    address = f"inproc://{fresh_seed().hex()}"
    ends[SERVER].bind(address)
    ends[CLIENT].connect(address)
    sessions = [
        kind(
            Peer(ends[rank], peer="the other party", codec=session_codec, timeout=timeout),
            rank=rank,
            seeds=SessionSeeds(dealt.seeds[rank], pair),
            plan=dealt.plan,
            corrections=partial(dealt.corrections, rank),
            masked_weights=masked if rank == CLIENT else None,
            arithmetic=arithmetic,
        )
        for rank in (SERVER, CLIENT)
    ]
    errors: list[BaseException] = []

    def run(session: SessionT) -> None:
        try:
            party(session)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(session,), daemon=True) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    context.destroy(linger=0)
    if errors:
        raise errors[0]
    return sessions
