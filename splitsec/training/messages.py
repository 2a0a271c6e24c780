"""What client, server and dealer say to each other outside prediction sessions."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.messages import (
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
from splitsec.mpc.program import Program, Reveal
from splitsec.privacy.plan import PrivacyPlan
from splitsec.privacy.updates import NoiseShares
from splitsec.training.schedule import Schedule
from splitsec.transport.codec import Codec, Message, Refused
from splitsec.transport.fields import (
    Identifier,
    Number,
    OptionalIdentifier,
    OptionalName,
    PartyName,
    Port,
    Seed,
    ShortText,
    Sizes,
    Start,
    Text,
)

PROTOCOL = 5


class ColumnsPart(msgspec.Struct, frozen=True, array_like=True):
    """What a client with columns takes part in: whether it has labels; whether it wants to train, and whether its front
    is trained already; whether it asks for predictions, None where that is decided later.

    `mark`, `run` and `rounds` say where its front comes from, as in `OpenSession`.
    """

    labels: bool
    trains: bool = True
    trained: bool = False
    asks: bool | None = None
    mark: OptionalIdentifier = ""
    run: OptionalIdentifier = ""
    rounds: Number = 0


class Hello(Message, frozen=True):
    """Client to server: who wants to take part.

    `segments` names and shapes what is combined, `begins` is a digest of its first values; `parameters` of the
    `values` are parameters. `rounds` are those at whose beginning the client can go on: 0, or its checkpoints, which
    are of run `run` and have these `marks` (see `Origin`). `shape` is that of one row's activation, so that what does
    not fit is refused before any round begins; empty where the client cannot know it yet. `architecture` is a digest of
    the shapes of the whole model, where the client knows it. `columns` is what a client with columns takes part in.
    """

    protocol: int
    version: ShortText
    cut: Text
    segments: tuple[tuple[Text, Sizes], ...]
    begins: ShortText
    parameters: Number
    values: Number
    samples: int
    rounds: Annotated[tuple[Number, ...], Meta(max_length=16)] = (0,)
    run: OptionalIdentifier = ""
    shape: Sizes = ()
    columns: ColumnsPart | None = None
    marks: Annotated[tuple[OptionalIdentifier, ...], Meta(max_length=16)] = ()
    architecture: OptionalIdentifier = ""


class Welcome(Message, frozen=True):
    """Server to client: the run begins, for this client with `round` of `rounds`; `start` is new each time that the
    server starts.

    With one vector (float64), the last combined segments, for a client that cannot go on by itself; a client that
    comes back in the middle of a round waits for `Combined`. Where the schedule has a budget, `plan` is how it is kept.
    `mark` is that of the segments after the last round, for a client that comes when all is over.
    """

    run: Identifier
    start: Start
    schedule: Schedule
    round: Number
    rounds: Number
    wait: bool = False
    plan: PrivacyPlan | None = None
    mark: OptionalIdentifier = ""


class Points(Message, frozen=True):
    """A client's points (uint8) in private set intersection: to the server, which sends them to those whom they have
    not met."""

    owner: PartyName


class Places(Message, frozen=True):
    """Server to client: which of its points are common to all (int64)."""


class Aligned(Message, frozen=True):
    """Client to server: it has found so many common rows; server to client: so have all, and the rounds begin."""

    rows: Number


class Batch(Message, frozen=True):
    """Client to server, with the activation (see `compression`) and, unless the cut is a U, the labels (int64).

    `shape` is that of one row's activation.
    """

    round: Number
    step: Number
    shape: Sizes


class Output(Message, frozen=True):
    """Server to client of a U, with the tail's output for its activation (float32)."""

    round: Number
    step: Number


class HeadGradient(Message, frozen=True):
    """Client of a U to server, with the gradient of its mean loss by the tail's output (float32); for differential
    privacy by record that of each row's own loss."""

    round: Number
    step: Number


class Gradient(Message, frozen=True):
    """Server to client, with the gradient of the client's mean loss by its activation (see `compression`), or for
    differential privacy by record that of each row's own loss, and with steps that are summed also the norms of each
    row's gradient at the tail (float32); of a U the server knows neither loss nor correct labels
    and says 0."""

    round: Number
    step: Number
    loss: float
    correct: int


class Upload(Message, frozen=True):
    """Client to server at the end of its round, with its segments under a mask (int64) if they are combined; with steps
    that are summed it is the gradient that is under the mask, and the norms of each row's gradient come with it
    (float32)."""

    round: Number


class Missed(Message, frozen=True):
    """Server to client: the round goes on without you."""

    round: Number


class Return(Message, frozen=True):
    """Client to server, to `Missed`: it is there again and waits for the segments that the others make."""

    round: Number


class Combined(Message, frozen=True):
    """Server to client at the end of a round, with the average (float64). In a relay `holder` has the newest segments:
    to whom it has handed them they come along (int64) under the pad with the number `pad`, and it is to hand them to
    those in `owed` as well; `lost` if it was started again without them. With a privacy budget the loss and the
    accuracy are 0: they are not covered by it.
    `mark` is that of the segments as they are now, see `Origin`; empty where nobody keeps them."""

    round: Number
    loss: float
    accuracy: float
    pad: Number = 0
    dropped: tuple[PartyName, ...] = ()
    holder: OptionalName = ""
    lost: bool = False
    owed: tuple[PartyName, ...] = ()
    mark: OptionalIdentifier = ""


class Handed(Message, frozen=True):
    """In a relay, holder to server, with the newest segments under a pad for each client that was owed them (int64);
    and server to such a client, with its own. `pad` is the pads' number."""

    holder: PartyName
    pad: Number


class OpenSession(Message, frozen=True):
    """Client to server: an encrypted prediction session for activations of this shape.

    `reveal` is what the client gets, `checked` whether every layer's range is checked, `comparison` how values are
    compared. `mark`, `run` and `rounds` say where the client's front comes from, see `Origin`.
    """

    shape: Sizes
    pair_seed: Seed
    reveal: Reveal = "logits"
    checked: bool = False
    comparison: ComparisonKind = "tables"
    mark: OptionalIdentifier = ""
    run: OptionalIdentifier = ""
    rounds: Number = 0

    def __repr__(self) -> str:
        return f"OpenSession(shape={self.shape})"


class Share(msgspec.Struct, frozen=True, array_like=True):
    """Where in the joined activation a client's features are."""

    client: PartyName
    start: Number
    width: Number


class Half(Message, frozen=True):
    """Client to server: its part of a model, compiled for several batch sizes; with weight and bias of each step that
    has some under the mask of `token` (int64), the same for all programs."""

    token: Identifier
    programs: Annotated[tuple[Program, ...], Meta(max_length=16)]


class SessionOpened(Message, frozen=True):
    """Server to client: the port on which the session listens, and the program to run; where activations are joined,
    whose features are where; where predictions are counted, how many rows the client has `left`."""

    session: Identifier
    port: Port
    program: Program
    shares: tuple[Share, ...] = ()
    left: int | None = None


class Serve(Message, frozen=True):
    """Client whose columns are joined to server: it will contribute its activation, of so many features, to the
    predictions that others ask for, until the server says `Done`. `mark`, `run` and `rounds` as in `OpenSession`."""

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
    """Server to client: give a share of the activation of these rows to the session of client `asker` that listens on
    this port, encoded with `precision` bits and below `limit`."""

    session: Identifier
    port: Port
    query: Number
    rows: tuple[Number, ...]
    precision: int
    limit: float
    asker: PartyName


class Contribution(Message, frozen=True):
    """Client to a session's worker, with its activation under a mask that the asking client knows (int64)."""

    query: Number


class NeedsCalibration(Message, frozen=True):
    """Server to client, to `OpenSession`: the weights guarantee no ranges; send activations of agreed noise."""


class Calibration(Message, frozen=True):
    """Client to server, with the activations (float32) that its front makes of noise that all parties could make."""


class GaveUp(Message, frozen=True):
    """Client to server: it ends before its time; `reason` is said without any value of its own."""

    reason: ShortText


class SeedsLost(Message, frozen=True):
    """Client to server: the dealer does not know this start of the run any more."""

    start: Start


class NewSeeds(Message, frozen=True):
    """Server to client: the run has a new start at the dealer. Ask it for seeds for the rounds from `round` on, and
    upload once more what was uploaded for that round."""

    start: Start
    round: Number


class GreetAgain(Message, frozen=True):
    """Server to client: the round begins anew, since too few would be left for it; say hello as at the beginning."""


class Waiting(Message, frozen=True):
    """Server to client, every few seconds: your message is here, others' are not yet."""


class Leave(Message, frozen=True):
    """Client to server: nothing more will come."""


ServerBody: TypeAlias = (
    Hello
    | Welcome
    | Points
    | Places
    | Aligned
    | Batch
    | Output
    | HeadGradient
    | Gradient
    | Upload
    | Missed
    | Return
    | Combined
    | Handed
    | NeedsCalibration
    | Calibration
    | GaveUp
    | SeedsLost
    | NewSeeds
    | GreetAgain
    | Waiting
    | OpenSession
    | Half
    | SessionOpened
    | Serve
    | Ask
    | Contribute
    | Leave
    | Done
    | Refused
)
# Programs travel to clients, and where these give a model in parts also from them.
server_codec: Codec[ServerBody] = Codec(ServerBody, header_bytes=1 << 22)

ContributionBody: TypeAlias = Contribution | Refused
contribution_codec: Codec[ContributionBody] = Codec(ContributionBody, header_bytes=1 << 10)


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """The clients whose masks were opened together in a round."""

    round: Number
    clients: tuple[PartyName, ...]


class BeginRun(Message, frozen=True):
    """Server to dealer: a start of a run; `fresh` if it has no earlier rounds.

    `opened` is the record of the rounds that were opened, where the server has been there for all of them: for a dealer
    that was started again and has none of its own.
    """

    run: Identifier
    start: Start
    fresh: bool
    opened: tuple[Opened, ...] | None = None


class JoinRun(Message, frozen=True):
    """Client to dealer: a seed for this run, from this round on, and one that it shares with each of `partners`; and
    the noise that sums of the run carry, if any. `once` is random in each request, so that one that is sent again is
    told from one of a client that was started again."""

    run: Identifier
    start: Start
    round: Number = 0
    noise: NoiseShares | None = None
    partners: Annotated[tuple[PartyName, ...], Meta(max_length=4096)] = ()
    once: Annotated[bytes, Meta(max_length=16)] = b""


class RunSeed(Message, frozen=True):
    """Dealer to client: its own seed, and those of its pairs in the order that it asked for; travels only inside
    CURVE."""

    seed: Seed
    pairs: tuple[Seed, ...] = ()

    def __repr__(self) -> str:
        return "RunSeed(...)"


class OpenMasks(Message, frozen=True):
    """Server to dealer: the sum of the masks of these clients in this round."""

    run: Identifier
    start: Start
    round: Number
    participants: tuple[PartyName, ...]
    length: Number


class MaskSum(Message, frozen=True):
    """Dealer to server, with one int64 vector."""

    round: Number


class Unseeded(Message, frozen=True):
    """Dealer to server, to `OpenMasks`: these clients have no seed for the round, so nothing was opened."""

    round: Number
    clients: tuple[PartyName, ...]


class OwnWeights(Message, frozen=True):
    """Client to dealer: a seed to mask weights with that nobody else is to know."""


class OwnerSeed(Message, frozen=True):
    """Dealer to client: the seed, and the token by which it is named; travels only inside CURVE."""

    token: Identifier
    seed: Seed

    def __repr__(self) -> str:
        return "OwnerSeed(...)"


DealerBody: TypeAlias = (
    OwnWeights
    | OwnerSeed
    | ShareWeights
    | WeightShares
    | BeginRun
    | JoinRun
    | RunSeed
    | OpenMasks
    | MaskSum
    | Unseeded
    | JoinSession
    | SessionSeed
    | DealQuery
    | More
    | Corrections
    | LeaveSession
    | Done
    | Refused
)
dealer_codec: Codec[DealerBody] = Codec(DealerBody)
