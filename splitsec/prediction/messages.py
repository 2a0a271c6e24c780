"""Messages of encrypted prediction outside sessions: to open one, to join inputs, to hand over parts of a model."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias

import msgspec
import torch
from msgspec import Meta

from splitsec.mpc.program.program import Engine, Program, Reveal
from splitsec.mpc.session.messages import (
    Corrections,
    DealQuery,
    Done,
    JoinSession,
    LeaveSession,
    More,
    SessionSeed,
    ShareWeights,
    WeightShares,
)
from splitsec.transport.codec import Codec, Message, Refused
from splitsec.transport.fields import (
    Identifier,
    Number,
    OptionalIdentifier,
    PartyName,
    Port,
    Seed,
    Sizes,
)
from splitsec.transport.tensor_specs import Several, Tensors, TensorSpec


class OpenSession(Message, frozen=True):
    """Client to server: the request for an encrypted prediction session, for activations of this shape.

    `pair_seed` is unknown to the dealer. `reveal` is what the client gets, `checked` whether every layer's range is
    checked, `comparison` how values are compared, `engine` whose functions layers run through. `mark`, `run` and
    `rounds` say where the client's front comes from, see `Origin`.
    """

    shape: Sizes
    pair_seed: Seed
    reveal: Reveal = "logits"
    checked: bool = False
    comparison: str = "tables"
    engine: Engine = "splitsec"
    mark: OptionalIdentifier = ""
    run: OptionalIdentifier = ""
    rounds: Number = 0

    def __repr__(self) -> str:
        return f"OpenSession(shape={self.shape})"


class Share(msgspec.Struct, frozen=True, array_like=True):
    """Place of a client's features in the joined activation."""

    client: PartyName
    start: Number
    width: Number


class Half(Message, frozen=True):
    """Client to server: its part of a model, compiled for several batch sizes.

    `weights` are weight and bias, in turn, of each step that has some, under the mask of `token`: the same for all
    programs.
    """

    token: Identifier
    programs: Annotated[tuple[Program, ...], Meta(max_length=16)]
    tensors: ClassVar[Tensors] = Tensors(weights=Several(TensorSpec(torch.int64)))


class SessionOpened(Message, frozen=True):
    """Server to client: the port on which the session listens, and the program to run.

    Where activations are joined, `shares` says where each client's features are; where predictions are counted, the
    client has `left` rows.
    """

    session: Identifier
    port: Port
    program: Program
    shares: tuple[Share, ...] = ()
    left: int | None = None


class Serve(Message, frozen=True):
    """Client whose columns are joined to server: it will contribute to the predictions of others until it gets `Done`.

    Its activation has `features` values a row; `mark`, `run` and `rounds` are as in `OpenSession`.
    """

    features: Number
    mark: OptionalIdentifier = ""
    run: OptionalIdentifier = ""
    rounds: Number = 0


class Ask(Message, frozen=True):
    """Client to server: the next query of its session is about these of the aligned rows."""

    session: Identifier
    query: Number
    rows: tuple[Number, ...]


class Contribute(Message, frozen=True):
    """Server to client: the request for a share of the activation of these rows.

    It goes to the session of client `asker` that listens on this port, encoded with `precision` bits and below `limit`.
    """

    session: Identifier
    port: Port
    query: Number
    rows: tuple[Number, ...]
    precision: int
    limit: float
    asker: PartyName


class Contribution(Message, frozen=True):
    """Client to a session's worker: its activation under a mask that the asking client knows."""

    query: Number
    tensors: ClassVar[Tensors] = Tensors(masked=TensorSpec(torch.int64, ("rows", "features")))


class NeedsCalibration(Message, frozen=True):
    """Server to client, after `OpenSession`: the request for activations of agreed noise, to measure ranges."""


class Calibration(Message, frozen=True):
    """Client to server: the activations that its front computes from noise that all parties could make."""

    tensors: ClassVar[Tensors] = Tensors(activations=TensorSpec(torch.float32, ("rows", ...)))


ContributionBody: TypeAlias = Contribution | Refused


contribution_codec: Codec[ContributionBody] = Codec(ContributionBody, header_bytes=1 << 10)


class OwnWeights(Message, frozen=True):
    """Client to dealer: the request for a seed of masks of its weights, which no other party gets."""


class OwnerSeed(Message, frozen=True):
    """Dealer to client: the seed, and the token by which it is named; travels only inside CURVE."""

    token: Identifier
    seed: Seed

    def __repr__(self) -> str:
        return "OwnerSeed(...)"


# What clients and server say to each other about predictions.
PredictionBody: TypeAlias = (
    OpenSession | Half | SessionOpened | Serve | Ask | Contribute | NeedsCalibration | Calibration
)
# What both say to the dealer, and hear from it, about predictions.
PredictionDealerBody: TypeAlias = (
    OwnWeights
    | OwnerSeed
    | ShareWeights
    | WeightShares
    | JoinSession
    | SessionSeed
    | DealQuery
    | More
    | Corrections
    | LeaveSession
    | Done
    | Refused
)
prediction_dealer_codec: Codec[PredictionDealerBody] = Codec(PredictionDealerBody)
