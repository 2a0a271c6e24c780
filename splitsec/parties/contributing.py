"""Encrypted predictions of activations that several clients make together: of the same people, from other columns.

The client that asks has its own activation. Every other client, with an activation h, gives the session's worker h - r,
where the mask r comes from a seed that it shares with the asking client alone, who derives r. So the two parties of the
session hold shares of what is joined: uniform to the server, also together with any third client, and r says nothing
of h.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError, RefusedError
from splitsec.mpc.prg import SEED_BYTES, Stream
from splitsec.parties.steps import Send
from splitsec.training.messages import (
    Ask,
    Contribute,
    Contribution,
    ContributionBody,
    Serve,
    SessionOpened,
    Share,
)
from splitsec.training.schedule import Schedule
from splitsec.training.vertical import joined
from splitsec.transport import Hub, expect_tensor

MOST_FEATURES = 1 << 20
# Contributions to so many queries may be here before they are used.
MOST_QUERIES = 32


def mask(pair_seed: bytes, session: str, query: int, client: str, shape: Sequence[int]) -> torch.Tensor:
    """The mask of one client's activation in one query of a session, int64 of `shape`; each is used once.

    Args:
        pair_seed: what the contributing and the asking client share.
        client: who contributes.
    """
    seed = hashlib.sha256(b"contribution " + pair_seed + session.encode() + b" " + client.encode()).digest()
    return Stream(seed[:SEED_BYTES], query).ring(shape)


class Masks:
    """What a client has contributed to: no query of a session gets a second share under the same mask."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def check(self, session: str, query: int) -> None:
        """Raise `RandomnessError` for a query that is not later than the session's last one."""
        if query < self._next.get(session, 0):
            raise RandomnessError(f"query {query} of session {session[:8]} has had its share; each mask serves once")
        self._next[session] = query + 1


@dataclass
class _Open:
    asker: str
    port: int
    program_limit: float
    precision: int


class Contributors:
    """The server's book of who contributes, and to which sessions.

    Args:
        send: sends a message to a client by name.
    """

    def __init__(self, schedule: Schedule, send: Send) -> None:
        self._schedule = schedule
        self._send = send
        self._features: dict[str, int] = {}
        self._sessions: dict[str, _Open] = {}

    def serve(self, name: str, body: Serve) -> None:
        """A client is there to contribute."""
        if not 0 <= body.features < MOST_FEATURES:
            raise MessageError(f"an activation cannot have {body.features} features")
        self._features[name] = body.features

    def ready(self, asker: str) -> bool:
        """Whether all others are there to contribute."""
        return all(name in self._features for name in self._schedule.clients if name != asker)

    @property
    def names(self) -> list[str]:
        """Who contributes."""
        return list(self._features)

    def shares(self, asker: str, width: int) -> tuple[Share, ...]:
        """Whose features are where in the joined activation, where the asking client has `width` of them."""
        found, start = [], 0
        for name in self._schedule.clients:
            mine = width if name == asker else self._features[name]
            found.append(Share(name, start if self._schedule.join == "concat" else 0, mine))
            start += mine
        if self._schedule.join == "sum" and len({one.width for one in found}) > 1:
            raise MessageError("activations that are added must have the same number of features")
        return tuple(found)

    def opened(self, asker: str, opened: SessionOpened, port: int) -> None:
        """A session has been opened; contributions to it go to `port`."""
        program = opened.program
        # Of values that are added, each may have its part of the range.
        limit = program.limit / (len(self._schedule.clients) if self._schedule.join == "sum" else 1)
        self._sessions[opened.session] = _Open(asker, port, limit, program.precision)

    def ask(self, name: str, body: Ask) -> None:
        """Pass a query's rows on to those who contribute."""
        session = self._sessions.get(body.session)
        if session is None or session.asker != name:
            raise RefusedError(f"{name} has no session {body.session[:8]}")
        wanted = Contribute(
            body.session, session.port, body.query, body.rows, session.precision, session.program_limit, name
        )
        for other in self._schedule.clients:
            if other != name:
                self._send(other, wanted, [])


def joined_shape(shares: Sequence[Share], rows: int) -> tuple[int, int]:
    """The shape of the joined activation."""
    return rows, max(one.start + one.width for one in shares)


def put_together(shares: Sequence[Share], parts: dict[str, torch.Tensor], join: str) -> torch.Tensor:
    """One party's share of the joined activation from its share of each client's, int64."""
    return joined([parts[one.client] for one in shares], "concat" if join == "concat" else "sum")


@dataclass
class Gathered:
    """A worker's side: contributions as they come in, until a query has them all.

    Args:
        hub: where contributors connect.
        shares: whose features are where; the asking client's are zeros here.
        rows: of a query.
    """

    hub: Hub[ContributionBody]
    shares: Sequence[Share]
    asker: str
    join: str
    rows: int
    _held: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def share(self, query: int, *, timeout: float, stopped: Callable[[], bool]) -> torch.Tensor:
        """The server's share of a query's joined activation; waits until all have contributed.

        Raises:
            PartyTimeoutError: names who has not.
        """
        deadline = time.monotonic() + timeout
        wanted = {one.client: one.width for one in self.shares if one.client != self.asker}
        while set(self._held.get(query, {})) != set(wanted):
            incoming = self.hub.receive(0.2, spin=True)
            if incoming is not None and isinstance(incoming.body, Contribution):
                name = incoming.sender.name
                try:
                    (part,) = incoming.tensors
                    expect_tensor(part, what="a contribution", dtype=torch.int64, shape=(self.rows, wanted[name]))
                except (ValueError, MessageError):
                    self.hub.refuse(incoming.sender, MessageError("a contribution that does not fit"))
                    continue
                if not query <= incoming.body.query < query + MOST_QUERIES:
                    # A place for each number that somebody makes up would fill the memory.
                    self.hub.refuse(incoming.sender, MessageError("a contribution to a query that nobody has asked"))
                    continue
                self._held.setdefault(incoming.body.query, {}).setdefault(name, part)
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(set(wanted) - set(self._held.get(query, {}))))
                raise PartyTimeoutError(f"{missing} contributed nothing for {timeout:g} s")
            if stopped():
                raise RefusedError("the server is stopping")
        own = next(one.width for one in self.shares if one.client == self.asker)
        parts = {**self._held.pop(query), self.asker: torch.zeros(self.rows, own, dtype=torch.int64)}
        return put_together(self.shares, parts, self.join)
