"""What client and server say to each other inside a prediction session, and to the dealer about it.

Masked values inside a query travel as raw frames, see `Peer.send_raw`.
"""

from __future__ import annotations

from typing import TypeAlias

from splitsec.mpc.plan import Plan
from splitsec.mpc.shared import SharedWeight
from splitsec.transport.codec import Codec, Message, Refused
from splitsec.transport.fields import Identifier, Number, PartyName, Seed


class Prepare(Message, frozen=True):
    """Client to server: get the randomness of all queries below this number ready; not answered."""

    below: Number


class Await(Message, frozen=True):
    """Client to server: say when this query is ready."""

    query: Number


class Ready(Message, frozen=True):
    """Server to client: the randomness of this query is ready; it took so many milliseconds."""

    query: Number
    milliseconds: float


class Preparing(Message, frozen=True):
    """Server to client, every few seconds until `Ready`: the randomness of this query is still coming in."""

    query: Number


class Run(Message, frozen=True):
    """Client to server: evaluate the program. Only where the client's first masked values do not say so themselves."""


class MaskedWeights(Message, frozen=True):
    """Server to client, once a session: each layer's weights minus their mask, one int64 tensor a layer.

    `ahead` is how many queries the server keeps ready at most.
    """

    layers: tuple[Number, ...]
    ahead: Number


class Ping(Message, frozen=True):
    """Client to server and back: measures the link's round trip."""


class Close(Message, frozen=True):
    """Client to server: the session is over."""


SessionBody: TypeAlias = MaskedWeights | Ping | Prepare | Await | Ready | Preparing | Run | Close | Refused
session_codec: Codec[SessionBody] = Codec(SessionBody, header_bytes=1 << 18)


class JoinSession(Message, frozen=True):
    """Server or client to dealer: a seed for this session and this plan."""

    session: Identifier
    rank: int
    client: PartyName
    plan: Plan


class SessionSeed(Message, frozen=True):
    """Dealer to server or client; travels only inside CURVE."""

    seed: Seed

    def __repr__(self) -> str:
        return "SessionSeed(...)"


class DealQuery(Message, frozen=True):
    """Server or client to dealer: the corrections of one query, so many bytes of them before `More`."""

    session: Identifier
    query: Number
    window: Number


class More(Message, frozen=True):
    """To the dealer from whoever gets corrections: so many bytes have come, and as many more may; not answered."""

    session: Identifier
    query: Number
    count: Number


class Corrections(Message, frozen=True):
    """Dealer to server: a part of a query's corrections, one flat int64 tensor."""

    query: Number


class ShareWeights(Message, frozen=True):
    """Server to dealer, once a session: its shares of the masks of these weights, which no party knows."""

    session: Identifier
    items: tuple[SharedWeight, ...]


class WeightShares(Message, frozen=True):
    """Dealer to server, with weight and bias of each item (int64)."""


class LeaveSession(Message, frozen=True):
    """Server or client to dealer: forget this session."""

    session: Identifier


class Done(Message, frozen=True):
    """An answer without content."""
