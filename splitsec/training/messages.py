"""What client, server and dealer say to each other outside prediction sessions."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.messages import Corrections, DealQuery, Done, JoinSession, LeaveSession, SessionSeed
from splitsec.mpc.program import Program, Reveal
from splitsec.transport.codec import Codec, Message, Refused

PROTOCOL = 2


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The run's schedule, decided by the server and sent to every client."""

    clients: tuple[str, ...]
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 2e-3


class Hello(Message, frozen=True):
    """Client to server: who wants to take part. `front` is a digest of the front's architecture and first
    values, `values` how many floating-point values it has."""

    protocol: int
    cut: str
    front: str
    values: int
    samples: int


class Welcome(Message, frozen=True):
    """Server to client, once all clients are there."""

    run: str
    schedule: Schedule


class Batch(Message, frozen=True):
    """Client to server, with the activation (float32) and, unless the cut is a U, the labels (int64)."""

    epoch: int
    step: int


class Output(Message, frozen=True):
    """Server to client of a U, with the tail's output for its activation (float32)."""


class HeadGradient(Message, frozen=True):
    """Client of a U to server, with the gradient of its mean loss by the tail's output (float32)."""

    epoch: int
    step: int


class Gradient(Message, frozen=True):
    """Server to client, with the gradient of the client's mean loss by its activation (float32); of a U the server
    knows neither loss nor correct labels and says 0."""

    loss: float
    correct: int


class Upload(Message, frozen=True):
    """Client to server at the end of an epoch, with the masked front (int64)."""

    round: int


class Combined(Message, frozen=True):
    """Server to client, with the average front (float64)."""

    round: int
    loss: float
    accuracy: float


class OpenSession(Message, frozen=True):
    """Client to server: an encrypted prediction session for activations of this shape.

    `reveal` is what the client gets, `checked` whether every layer's range is checked, `comparison` how values are
    compared.
    """

    shape: tuple[int, ...]
    pair_seed: bytes
    reveal: Reveal = "logits"
    checked: bool = False
    comparison: ComparisonKind = "tables"

    def __repr__(self) -> str:
        return f"OpenSession(shape={self.shape})"


class SessionOpened(Message, frozen=True):
    """Server to client: the port on which the session listens, and the program to run."""

    session: str
    port: int
    program: Program


class Waiting(Message, frozen=True):
    """Server to client, every few seconds: your message is here, others' are not yet."""


class Leave(Message, frozen=True):
    """Client to server: nothing more will come."""


ServerBody: TypeAlias = (
    Hello
    | Welcome
    | Batch
    | Output
    | HeadGradient
    | Gradient
    | Upload
    | Combined
    | Waiting
    | OpenSession
    | SessionOpened
    | Leave
    | Done
    | Refused
)
server_codec: Codec[ServerBody] = Codec(ServerBody)


class JoinRun(Message, frozen=True):
    """Client to dealer: a mask seed for this run."""

    run: str


class RunSeed(Message, frozen=True):
    """Dealer to client; travels only inside CURVE."""

    seed: bytes

    def __repr__(self) -> str:
        return "RunSeed(...)"


class OpenMasks(Message, frozen=True):
    """Server to dealer: the sum of the masks of these clients in this round."""

    run: str
    round: int
    participants: tuple[str, ...]
    length: int


class MaskSum(Message, frozen=True):
    """Dealer to server, with one int64 vector."""

    round: int


DealerBody: TypeAlias = (
    JoinRun
    | RunSeed
    | OpenMasks
    | MaskSum
    | JoinSession
    | SessionSeed
    | DealQuery
    | Corrections
    | LeaveSession
    | Done
    | Refused
)
dealer_codec: Codec[DealerBody] = Codec(DealerBody)
