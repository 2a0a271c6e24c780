"""Messages of a prediction session: between client and server inside it, and of both with the dealer about it.

Masked values inside a query travel as raw frames, see `Peer.send_raw`.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import torch

from splitsec.mpc.correlation import WirePlan
from splitsec.mpc.protocols.shared_linear import SharedWeight
from splitsec.transport.codec import Codec, Message, Refused
from splitsec.transport.fields import Identifier, Number, PartyName, Seed
from splitsec.transport.tensor_specs import Several, Tensors, TensorSpec


class Prepare(Message, frozen=True):
    """Client to server: the request to make the randomness of all queries below this number ready; not answered."""

    below: Number


class Await(Message, frozen=True):
    """Client to server: the request to be told when this query is ready."""

    query: Number


class Ready(Message, frozen=True):
    """Server to client: the randomness of this query is ready, and how many milliseconds that took."""

    query: Number
    milliseconds: float


class Preparing(Message, frozen=True):
    """Server to client, every few seconds until `Ready`: the randomness of this query is still coming in."""

    query: Number


class Run(Message, frozen=True):
    """Client to server: the request to run the program, sent only where the client sends no masked values first."""


class MaskedWeights(Message, frozen=True):
    """Server to client, once a session: each layer's weights minus their mask.

    `ahead` is how many queries the server keeps ready at most.
    """

    layers: tuple[Number, ...]
    ahead: Number
    tensors: ClassVar[Tensors] = Tensors(weights=Several(TensorSpec(torch.int64)))


class Ping(Message, frozen=True):
    """Client to server and back: an empty message, to measure the link's round trip."""


class Close(Message, frozen=True):
    """Client to server: the session is over."""


SessionBody: TypeAlias = MaskedWeights | Ping | Prepare | Await | Ready | Preparing | Run | Close | Refused
session_codec: Codec[SessionBody] = Codec(SessionBody, header_bytes=1 << 18)


class JoinSession(Message, frozen=True):
    """Server or client to dealer: the request for a seed, for this session and this plan."""

    session: Identifier
    rank: int
    client: PartyName
    plan: WirePlan


class SessionSeed(Message, frozen=True):
    """Dealer to server or client: its seed of the session; travels only inside CURVE."""

    seed: Seed

    def __repr__(self) -> str:
        return "SessionSeed(...)"


class DealQuery(Message, frozen=True):
    """Server or client to dealer: the request for a query's corrections, `window` bytes of them before `More`."""

    session: Identifier
    query: Number
    window: Number


class More(Message, frozen=True):
    """Server or client to dealer: `count` bytes of corrections have come, and as many more may; not answered."""

    session: Identifier
    query: Number
    count: Number


class Corrections(Message, frozen=True):
    """Dealer to server or client: a part of a query's corrections."""

    query: Number
    tensors: ClassVar[Tensors] = Tensors(part=TensorSpec(torch.int64, (None,)))


class ShareWeights(Message, frozen=True):
    """Server to dealer, once a session: the request for its shares of these weights' masks, which no party knows."""

    session: Identifier
    items: tuple[SharedWeight, ...]


class WeightShares(Message, frozen=True):
    """Dealer to server: the shares of weight and bias of each item, in turn."""

    tensors: ClassVar[Tensors] = Tensors(shares=Several(TensorSpec(torch.int64)))


class LeaveSession(Message, frozen=True):
    """Server or client to dealer: the session is over, and its seeds can go."""

    session: Identifier


class Done(Message, frozen=True):
    """An answer without content."""
