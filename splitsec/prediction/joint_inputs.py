"""Encrypted predictions of joined activations, which several clients compute from their columns of the same rows.

The client that asks has its own activation. Every other client, with an activation h, gives the session's worker h - r,
where the mask r comes from a seed that it shares with the asking client alone, which derives r. So the two parties of
the session hold shares of the joined activation: uniform to the server, also together with any third client, and r says
nothing about h.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from splitsec.cut.joined import joined
from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError, RefusedError
from splitsec.mpc.prg import SEED_BYTES, Stream
from splitsec.prediction.messages import Ask, Contribute, Contribution, ContributionBody, Serve, SessionOpened, Share
from splitsec.settings.run import RunSettings
from splitsec.transport import Hub, Message

Send: TypeAlias = Callable[[str, Message], None]
MOST_FEATURES = 1 << 20
# The most queries whose contributions may be here before they are used.
MOST_QUERIES = 32


def mask(pair_seed: bytes, session: str, query: int, client: str, shape: Sequence[int]) -> torch.Tensor:
    """Return the mask of one client's activation in one query of a session, int64 of `shape`; each is used once.

    Args:
        pair_seed: the seed that the contributing and the asking client share.
        client: the contributing client.
    """
    seed = hashlib.sha256(b"contribution " + pair_seed + session.encode() + b" " + client.encode()).digest()
    return Stream(seed[:SEED_BYTES], query).ring(shape)


class Masks:
    """The queries that a client has contributed to: none of a session gets a second share under the same mask."""

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
    """The server's book of the clients that contribute, and of the sessions.

    Args:
        send: sends a message to a client by name.
    """

    def __init__(self, settings: RunSettings, send: Send) -> None:
        self._settings = settings
        self._send = send
        self._features: dict[str, int] = {}
        self._sessions: dict[str, _Open] = {}

    def serve(self, name: str, body: Serve) -> None:
        """Note that a client is there to contribute."""
        if not 0 <= body.features < MOST_FEATURES:
            raise MessageError(f"an activation cannot have {body.features} features")
        self._features[name] = body.features

    def ready(self, asker: str) -> bool:
        """Return whether all others are there to contribute."""
        return all(name in self._features for name in self._settings.clients if name != asker)

    @property
    def names(self) -> list[str]:
        """Return the clients that contribute."""
        return list(self._features)

    def shares(self, asker: str, width: int) -> tuple[Share, ...]:
        """Return where each client's features are in the joined activation; the asking client has `width` of them."""
        shares, start = [], 0
        for name in self._settings.clients:
            features = width if name == asker else self._features[name]
            shares.append(Share(name, start if self._settings.join == "concat" else 0, features))
            start += features
        if self._settings.join == "sum" and len({share.width for share in shares}) > 1:
            raise MessageError("activations that are added must have the same number of features")
        return tuple(shares)

    def opened(self, asker: str, opened: SessionOpened, port: int) -> None:
        """Note a session that has been opened; contributions to it go to `port`."""
        program = opened.program
        # Of values that are added, each may have its part of the range.
        limit = program.limit / (len(self._settings.clients) if self._settings.join == "sum" else 1)
        self._sessions[opened.session] = _Open(asker, port, limit, program.precision)

    def ask(self, name: str, body: Ask) -> None:
        """Pass a query's rows on to the clients that contribute."""
        session = self._sessions.get(body.session)
        if session is None or session.asker != name:
            raise RefusedError(f"{name} has no session {body.session[:8]}")
        request = Contribute(
            body.session, session.port, body.query, body.rows, session.precision, session.program_limit, name
        )
        for other in self._settings.clients:
            if other != name:
                self._send(other, request)


def joined_shape(shares: Sequence[Share], rows: int) -> tuple[int, int]:
    """Return the shape of the joined activation."""
    return rows, max(share.start + share.width for share in shares)


def put_together(shares: Sequence[Share], parts: dict[str, torch.Tensor], join: str) -> torch.Tensor:
    """Return one party's share of the joined activation, from its share of each client's, int64."""
    return joined([parts[share.client] for share in shares], "concat" if join == "concat" else "sum")


@dataclass
class Gathered:
    """Contributions at a worker as they come in, until a query has them all.

    Args:
        hub: the socket to which contributors connect.
        shares: where each client's features are; the asking client's are zeros here.
        rows: of a query.
    """

    hub: Hub[ContributionBody]
    shares: Sequence[Share]
    asker: str
    join: str
    rows: int
    _parts: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def share(self, query: int, *, timeout: float, stopped: Callable[[], bool]) -> torch.Tensor:
        """Wait until all have contributed to a query; return the server's share of its joined activation.

        Raises:
            PartyTimeoutError: clients that have not contributed; names them.
        """
        deadline = time.monotonic() + timeout
        widths = {share.client: share.width for share in self.shares if share.client != self.asker}
        while set(self._parts.get(query, {})) != set(widths):
            incoming = self.hub.receive(0.2, spin=True)
            if incoming is not None and isinstance(incoming.body, Contribution):
                name = incoming.sender.name
                part = incoming.tensors["masked"]
                if part.shape != (self.rows, widths[name]):
                    self.hub.refuse(incoming.sender, MessageError("a contribution that does not fit"))
                    continue
                if not query <= incoming.body.query < query + MOST_QUERIES:
                    # A place for every number that a client makes up would fill the memory.
                    self.hub.refuse(incoming.sender, MessageError("a contribution to a query that has not been asked"))
                    continue
                self._parts.setdefault(incoming.body.query, {}).setdefault(name, part)
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(set(widths) - set(self._parts.get(query, {}))))
                raise PartyTimeoutError(f"{missing} contributed nothing for {timeout:g} s")
            if stopped():
                raise RefusedError("the server is stopping")
        own = next(share.width for share in self.shares if share.client == self.asker)
        parts = {**self._parts.pop(query), self.asker: torch.zeros(self.rows, own, dtype=torch.int64)}
        return put_together(self.shares, parts, self.join)
