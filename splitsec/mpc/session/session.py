"""One prediction session as one party sees it: its transport, randomness, counters and precision.

A `Session` is a `Context` that runs a protocol for real against the other party. A `Planner` is one that runs it on
zeros, alone, to learn which correlations it will take and what it will cost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from splitsec.errors import RandomnessError
from splitsec.mpc.context import USUAL, Arithmetic
from splitsec.mpc.correlation import Correlation, Plan
from splitsec.mpc.prg import Stream
from splitsec.mpc.ring import PRECISION_BITS
from splitsec.mpc.session.messages import SessionBody
from splitsec.mpc.session.plan import correction_count, expand
from splitsec.transport.peer import RAW_HEADER, Peer

STEPS = 1 << 16
QUERIES = 1 << 16


@dataclass
class Cost:
    """Rounds and bytes of one party: a round is one wait for a message of the peer."""

    rounds: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(frozen=True)
class Sent:
    """A message of a planned protocol: its bytes, and to whom it goes, None for one in each direction."""

    size: int
    to: int | None = None


class Planner:
    """Runs a protocol on zeros and records its plan and its exact cost.

    `trace` is what it did, in order; `replay` does the same again without running anything.
    """

    def __init__(self, rank: int, precision: int = PRECISION_BITS, comparison: str = "tables") -> None:
        self.rank = rank
        self.precision = precision
        self.comparison: str = comparison
        self.planning = True
        self.cost = Cost()
        self._taken: list[Correlation] = []
        self.trace: list[Correlation | Sent] = []
        # When server and client can go on, in half round trips, if only messages take time.
        self._clocks = [0, 0]

    @property
    def plan(self) -> Plan:
        """Return the correlations that were taken so far, in order."""
        return tuple(self._taken)

    @property
    def hops(self) -> int:
        """Return the longest chain of messages so far that each wait for the one before, in half round trips."""
        return max(self._clocks)

    def take(self, item: Correlation) -> list[torch.Tensor]:
        self.replay([item])
        return item.zeros(self.rank)

    def exchange(self, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.replay([Sent(self._message(own))])
        return [torch.zeros_like(tensor) for tensor in own]

    def collect(self, own: torch.Tensor, to: int) -> torch.Tensor | None:
        self.replay([Sent(self._message([own]), to)])
        return torch.zeros_like(own) if to == self.rank else None

    def replay(self, trace: Sequence[Correlation | Sent]) -> None:
        """Count what a protocol did."""
        self.trace.extend(trace)
        for event in trace:
            if not isinstance(event, Sent):
                self._taken.append(event)
            elif event.to is None:
                server, client = self._clocks
                self._clocks = [max(server, client + 1), max(client, server + 1)]
                self.cost.rounds += 1
                self.cost.bytes_sent += event.size
                self.cost.bytes_received += event.size
            else:
                self._clocks[event.to] = max(self._clocks[event.to], self._clocks[1 - event.to] + 1)
                if event.to == self.rank:
                    self.cost.rounds += 1
                    self.cost.bytes_received += event.size
                else:
                    self.cost.bytes_sent += event.size

    def common(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def _message(self, tensors: Sequence[torch.Tensor]) -> int:
        return RAW_HEADER.size + sum(8 * tensor.numel() for tensor in tensors)


@dataclass(frozen=True)
class SessionSeeds:
    """A party's seeds of a session: shared with the dealer, and shared with the other party, unknown to the dealer."""

    dealt: bytes = field(repr=False)
    pair: bytes = field(repr=False)


class Session:
    """A live session; see `Context`.

    Args:
        peer: the socket to the other party.
        rank: `SERVER` or `CLIENT`.
        seeds: of this party.
        plan: correlations of one query.
        corrections: fetches a query's corrections from the dealer, part by part; None where this party gets none.
        masked_weights: for the client, each layer's masked weights.
        arithmetic: how both parties compute.
    """

    def __init__(
        self,
        peer: Peer[SessionBody],
        *,
        rank: int,
        seeds: SessionSeeds,
        plan: Plan,
        corrections: Callable[[int], Iterable[torch.Tensor]] | None = None,
        masked_weights: Mapping[int, torch.Tensor] | None = None,
        arithmetic: Arithmetic = USUAL,
    ) -> None:
        if corrections is None and correction_count(plan, rank):
            raise ValueError("this plan needs corrections from the dealer")
        self.peer = peer
        self.rank = rank
        self.precision = arithmetic.precision
        self.comparison: str = arithmetic.comparison
        self.planning = False
        self.plan = plan
        self._seeds = seeds
        self._corrections = corrections
        self._masked_weights = masked_weights
        # Parts of corrections that have come, of all queries: a caller that waits for a query sees that it goes on.
        self.fetched = 0
        self._next_query = 0
        self._next_run = 0
        self._ready: dict[int, deque[tuple[Correlation, list[torch.Tensor]]]] = {}
        self._current: deque[tuple[Correlation, list[torch.Tensor]]] | None = None
        self._common: Stream | None = None
        self._common_query: int | None = None
        self._step = 0

    @property
    def next_query(self) -> int:
        """Return the number that the next `prepare` will use."""
        return self._next_query

    @property
    def next_run(self) -> int:
        """Return the number of the query that runs next: both parties run them in order."""
        return self._next_run

    def prepare(self) -> int:
        """Make the next query's randomness ready (the offline phase) and return its number.

        May run in another thread than the queries, but in one thread only.
        """
        query = self._next_query
        fetched = None if self._corrections is None else self._counted(self._corrections(query))
        parts = expand(self.plan, self.rank, self._seeds.dealt, query, fetched, self._masked_weights)
        self._ready[query] = deque(zip(self.plan, parts, strict=True))
        self._next_query += 1
        return query

    def _counted(self, parts: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for part in parts:
            self.fetched += 1
            yield part

    def begin(self, query: int) -> None:
        """Start the online phase of a prepared query; each query runs once.

        Raises:
            RandomnessError: the query was not prepared, or its randomness is used up.
        """
        if query not in self._ready:
            state = "was used before" if 0 <= query < self._next_query else "was never prepared"
            raise RandomnessError(f"the randomness of query {query} {state}; one-time randomness serves once")
        self._current = self._ready.pop(query)
        self._next_run = query + 1
        self._common_query = query
        # Steps begin at the query's number, so that two parties in different queries find out at the first message.
        self._step = (query % QUERIES) * STEPS

    def end(self) -> None:
        """Finish a query; raises `RandomnessError` if it left part of its plan unused."""
        left, self._current, self._common, self._common_query = self._current, None, None, None
        if left:
            raise RandomnessError(f"{len(left)} correlations of the plan were not used: the two programs differ")

    def take(self, item: Correlation) -> list[torch.Tensor]:
        if not self._current:
            raise RandomnessError("no randomness is left in this query's plan; one-time randomness serves once")
        planned, parts = self._current.popleft()
        if planned != item:
            raise RandomnessError(f"the plan has {planned}, the program wants {item}")
        return parts

    def exchange(self, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.peer.send_raw(self._step, own)
        return self._receive(own)

    def collect(self, own: torch.Tensor, to: int) -> torch.Tensor | None:
        if to == self.rank:
            return self._receive([own])[0]
        self.peer.send_raw(self._step, [own])
        self._step += 1
        return None

    def common(self, shape: Sequence[int]) -> torch.Tensor:
        if self._common_query is None:
            raise RandomnessError("no query is running")
        if self._common is None:
            # Few programs need one, and to make it takes as long as a message.
            self._common = Stream(self._seeds.pair, self._common_query)
        return self._common.ring(shape)

    def _receive(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tensors = self.peer.receive_raw(self._step, like)
        self._step += 1
        return tensors
