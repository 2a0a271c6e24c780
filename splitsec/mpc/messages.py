"""What client and server say to each other inside a prediction session, and to the dealer about it.

Masked values inside a query travel as raw frames, see `Peer.send_raw`.
"""

from __future__ import annotations

from typing import TypeAlias

from splitsec.mpc.plan import Plan
from splitsec.mpc.shared import SharedWeight
from splitsec.transport.codec import Codec, Message, Refused


class Prepare(Message, frozen=True):
    """Client to server: get the randomness of all queries below this number ready; not answered."""

    below: int


class Await(Message, frozen=True):
    """Client to server: say when this query is ready."""

    query: int


class Ready(Message, frozen=True):
    """Server to client: the randomness of this query is ready; it took so many milliseconds."""

    query: int
    milliseconds: float


class Run(Message, frozen=True):
    """Client to server: evaluate the program. Only where the client's first masked values do not say so themselves."""


class MaskedWeights(Message, frozen=True):
    """Server to client, once a session: each layer's weights minus their mask, one int64 tensor a layer.

    `ahead` is how many queries the server keeps ready at most.
    """

    layers: tuple[int, ...]
    ahead: int


class Ping(Message, frozen=True):
    """Client to server and back: measures the link's round trip."""


class Close(Message, frozen=True):
    """Client to server: the session is over."""


SessionBody: TypeAlias = MaskedWeights | Ping | Prepare | Await | Ready | Run | Close | Refused
session_codec: Codec[SessionBody] = Codec(SessionBody)


class JoinSession(Message, frozen=True):
    """Server or client to dealer: a seed for this session and this plan."""

    session: str
    rank: int
    client: str
    plan: Plan


class SessionSeed(Message, frozen=True):
    """Dealer to server or client; travels only inside CURVE."""

    seed: bytes

    def __repr__(self) -> str:
        return "SessionSeed(...)"


class DealQuery(Message, frozen=True):
    """Server to dealer: the corrections of one query."""

    session: str
    query: int


class Corrections(Message, frozen=True):
    """Dealer to server: a part of a query's corrections, one flat int64 tensor."""

    query: int


class ShareWeights(Message, frozen=True):
    """Server to dealer, once a session: its shares of the masks of these weights, which no party knows."""

    session: str
    items: tuple[SharedWeight, ...]


class WeightShares(Message, frozen=True):
    """Dealer to server, with weight and bias of each item (int64)."""


class LeaveSession(Message, frozen=True):
    """Server or client to dealer: forget this session."""

    session: str


class Done(Message, frozen=True):
    """An answer without content."""
