"""Both parties of a protocol in two threads of one process, over a socket pair, with the dealer between them.

For demonstrations, simulations and audits: the messages are those of two processes, and who sees the process sees
everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
import zmq

from splitsec.mpc.context import CLIENT, SERVER, Context
from splitsec.mpc.messages import session_codec
from splitsec.mpc.plan import Plan, deal, weight_masks
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.session import Cost, Planner, Session
from splitsec.transport import Peer

# What a party does in a query with this number.
Protocol: TypeAlias = Callable[[Context, int], Any]


@dataclass
class Paired:
    """What came of it, one entry a query.

    Attributes:
        server, client: what the protocol gave each.
        seen: everything that the server received, and what it knows from that and its own message, int64 vectors.
        cost: one query's, of the client.
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

    def exchange(self, mine: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        theirs = super().exchange(mine)
        self.seen += [one.reshape(-1) + other.reshape(-1) for one, other in zip(mine, theirs, strict=True)]
        return theirs

    def _receive(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tensors = super()._receive(like)
        self.seen += [one.reshape(-1).clone() for one in tensors]
        return tensors

    def take_seen(self) -> torch.Tensor:
        found, self.seen = torch.cat([*self.seen, torch.empty(0, dtype=torch.int64)]), []
        return found


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
    plan, seeds, pair = planner.plan, (fresh_seed(), fresh_seed()), fresh_seed()
    masks = weight_masks(plan, seeds[SERVER])
    masked = {layer: (weights or {})[layer] - mask for layer, mask in masks.items()}
    context = zmq.Context()
    ends = [context.socket(zmq.PAIR) for _ in range(2)]
    address = f"inproc://{fresh_seed().hex()}"
    ends[SERVER].bind(address)
    ends[CLIENT].connect(address)
    sessions = [
        _Watched(
            Peer(ends[rank], peer="the other party", codec=session_codec, timeout=timeout),
            rank=rank,
            dealt_seed=seeds[rank],
            pair_seed=pair,
            plan=plan,
            corrections=partial(_dealt, plan, seeds, masks, rank),
            masked_weights=masked if rank == CLIENT else None,
        )
        for rank in (SERVER, CLIENT)
    ]
    found = Paired([], [], [], planner.cost)
    errors: list[BaseException] = []

    def party(rank: int) -> None:
        session, results = sessions[rank], (found.server, found.client)[rank]
        try:
            for query in range(queries):
                session.begin(session.prepare())
                results.append(protocol(session, query))
                session.end()
                seen = session.take_seen()
                if rank == SERVER:
                    found.seen.append(seen)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=party, args=(rank,), daemon=True) for rank in (SERVER, CLIENT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    context.destroy(linger=0)
    if errors:
        raise errors[0]
    return found


def _dealt(
    plan: Plan, seeds: tuple[bytes, bytes], masks: dict[int, torch.Tensor], rank: int, query: int
) -> Iterator[torch.Tensor]:
    return deal(plan, *seeds, query, masks, rank=rank)
