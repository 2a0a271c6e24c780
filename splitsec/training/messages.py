"""Messages of training: between clients and server, and of both with the dealer."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias

import msgspec
import torch
from msgspec import Meta

from splitsec.cut.origin import Origin
from splitsec.mpc.session.messages import (
    Done,
)
from splitsec.privacy.dp_updates import NoiseShares
from splitsec.privacy.plan import PrivacyPlan
from splitsec.settings.run import RunSettings
from splitsec.training.intersection import POINT_BYTES
from splitsec.transport.codec import Message, Refused
from splitsec.transport.fields import (
    Identifier,
    Number,
    OptionalIdentifier,
    OptionalName,
    PartyName,
    Seed,
    ShortText,
    Sizes,
    Start,
    Text,
)
from splitsec.transport.tensor_specs import Optional, Several, Tensors, TensorSpec

# What an activation or a gradient becomes on the way, see `compression`: each tensor has an entry for every row.
CODED = Several(
    TensorSpec((torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8), ("rows", ...)), least=1, most=4
)
ROW_NORMS = Optional(TensorSpec(torch.float32, ("rows",)))
# A client's values one after the other: combined in the open, and in the ring under a mask or a pad.
COMBINED = TensorSpec(torch.float64, ("values",))
MASKED = TensorSpec(torch.int64, ("values",))


class ColumnsPart(msgspec.Struct, frozen=True, array_like=True):
    """Part of a client with columns in a run.

    It has `labels` or not, it `trains` or comes with a front that is `trained` already, and it `asks` for predictions,
    None where that is decided later. `mark`, `run` and `rounds` say where its front comes from, as in `OpenSession`.
    """

    labels: bool
    trains: bool = True
    trained: bool = False
    asks: bool | None = None
    mark: OptionalIdentifier = ""
    run: OptionalIdentifier = ""
    rounds: Number = 0

    @property
    def origin(self) -> Origin:
        """Return where its front comes from."""
        return Origin(mark=self.mark, run=self.run, rounds=self.rounds)


class Hello(Message, frozen=True):
    """Client to server: the request to take part.

    `segments` are names and shapes of the tensors that are combined, `begins` is a digest of their first values;
    `parameters` of the `values` are parameters. `rounds` are those at whose beginning the client can go on: 0, or its
    checkpoints, which are of run `run` and have these `marks` (see `Origin`). `shape` is that of one row's activation,
    so that one that does not fit is refused before any round begins; empty where the client cannot know it yet.
    `architecture` is a digest of the shapes of the whole model, where the client knows it. `columns` is the part of a
    client with columns.
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
    """Server to client: the run begins, for this client with `round` of `rounds`.

    `start` is new each time that the server starts. `combined` are the last combined segments, for a client that cannot
    go on by itself; a client that comes back in the middle of a round waits for `Combined`. Where the run has a budget,
    `plan` is how it is kept. `mark` is that of the segments after the last round, for a client that comes when all is
    over.
    """

    run: Identifier
    start: Start
    settings: RunSettings
    round: Number
    rounds: Number
    wait: bool = False
    plan: PrivacyPlan | None = None
    mark: OptionalIdentifier = ""
    tensors: ClassVar[Tensors] = Tensors(combined=Optional(COMBINED))


class Points(Message, frozen=True):
    """Client to server, and server to the next client: a client's points in private set intersection.

    The server passes them on to each client that has not multiplied them yet.
    """

    owner: PartyName
    tensors: ClassVar[Tensors] = Tensors(points=TensorSpec(torch.uint8, ("points", POINT_BYTES)))


class Places(Message, frozen=True):
    """Server to client: which of its points are common to all."""

    tensors: ClassVar[Tensors] = Tensors(places=TensorSpec(torch.int64, ("places",)))


class Aligned(Message, frozen=True):
    """Client to server: the number of common rows that it has; server to client: all have it, and the rounds begin."""

    rows: Number


class Batch(Message, frozen=True):
    """Client to server: the activation of a step's rows (see `compression`), and their labels unless the cut is a U.

    `shape` is that of one row's activation.
    """

    round: Number
    step: Number
    shape: Sizes
    tensors: ClassVar[Tensors] = Tensors(activation=CODED, labels=Optional(TensorSpec(torch.int64, ("rows",))))


class Output(Message, frozen=True):
    """Server to client of a U: the tail's output for its activation."""

    round: Number
    step: Number
    tensors: ClassVar[Tensors] = Tensors(output=TensorSpec(torch.float32, ("rows", ...)))


class HeadGradient(Message, frozen=True):
    """Client of a U to server: the gradient of its mean loss with respect to the tail's output.

    For differential privacy by record it is that of each row's own loss.
    """

    round: Number
    step: Number
    tensors: ClassVar[Tensors] = Tensors(gradient=TensorSpec(torch.float32, ("rows", ...)))


class Gradient(Message, frozen=True):
    """Server to client: the gradient of the client's mean loss with respect to its activation (see `compression`).

    For differential privacy by record it is that of each row's own loss. With steps that are summed, `row_norms` are
    those of each row's gradient at the tail. Of a U the server knows neither loss nor correct labels and says 0.
    """

    round: Number
    step: Number
    loss: float
    correct: int
    tensors: ClassVar[Tensors] = Tensors(gradient=CODED, row_norms=ROW_NORMS)


class Upload(Message, frozen=True):
    """Client to server at the end of its round: its segments under a mask, if they are combined.

    In a relay they are under a pad, once for each client that gets them. With steps that are summed it is the gradient
    that is under the mask, and `row_norms` are those of each row's gradient.
    """

    round: Number
    tensors: ClassVar[Tensors] = Tensors(masked=Several(MASKED), row_norms=ROW_NORMS)


class Missed(Message, frozen=True):
    """Server to client: the round goes on without it."""

    round: Number


class Return(Message, frozen=True):
    """Client to server, in answer to `Missed`: it is there again and waits for the end of the round."""

    round: Number


class Combined(Message, frozen=True):
    """Server to client at the end of a round: the `combined` segments.

    In a relay `holder` has the newest segments: for a client to which it has handed them they are `sealed`, under the
    pad with the number `pad`, and it is to hand them to those in `owed` as well; `lost` if it was started again without
    them. With a privacy budget the loss and the accuracy are 0, since the budget does not cover them. `mark` is that of
    the segments as they are now, see `Origin`; empty where no party keeps them.
    """

    round: Number
    loss: float
    accuracy: float
    pad: Number = 0
    dropped: tuple[PartyName, ...] = ()
    holder: OptionalName = ""
    lost: bool = False
    owed: tuple[PartyName, ...] = ()
    mark: OptionalIdentifier = ""
    tensors: ClassVar[Tensors] = Tensors(combined=Optional(COMBINED), sealed=Optional(MASKED))


class Handed(Message, frozen=True):
    """In a relay, holder to server: the newest segments under a pad for each client that was owed them.

    The server passes on to each such client those for it alone. `pad` is the pads' number.
    """

    holder: PartyName
    pad: Number
    tensors: ClassVar[Tensors] = Tensors(sealed=Several(MASKED, least=1))


class GaveUp(Message, frozen=True):
    """Client to server: it ends before its time; `reason` holds none of its values."""

    reason: ShortText


class SeedsLost(Message, frozen=True):
    """Client to server: the dealer does not know this start of the run any more."""

    start: Start


class NewSeeds(Message, frozen=True):
    """Server to client: the run has a new start at the dealer.

    The client is to ask it for seeds of the rounds from `round` on, and to repeat the upload of that round under them.
    """

    start: Start
    round: Number


class GreetAgain(Message, frozen=True):
    """Server to client: the round begins anew, since too few would be left; the client is to say `Hello` again."""


class Waiting(Message, frozen=True):
    """Server to client, every few seconds: its message is here, and those of others are not yet."""


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """Clients whose masks were opened together in a round."""

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
    """Client to dealer: the request for a seed for this run, from this round on, and for one with each of `partners`.

    `noise` is what sums of the run carry, if any. `once` is random in each request, so that one that is sent again is
    told from one of a client that was started again.
    """

    run: Identifier
    start: Start
    round: Number = 0
    noise: NoiseShares | None = None
    partners: Annotated[tuple[PartyName, ...], Meta(max_length=4096)] = ()
    once: Annotated[bytes, Meta(max_length=16)] = b""


class RunSeed(Message, frozen=True):
    """Dealer to client: its own seed, and those of its pairs in the order that it asked for.

    Travels only inside CURVE.
    """

    seed: Seed
    pairs: tuple[Seed, ...] = ()

    def __repr__(self) -> str:
        return "RunSeed(...)"


class OpenMasks(Message, frozen=True):
    """Server to dealer: the request for the sum of the masks of these clients in this round."""

    run: Identifier
    start: Start
    round: Number
    participants: tuple[PartyName, ...]
    length: Number


class MaskSum(Message, frozen=True):
    """Dealer to server: the sum of the masks that it was asked to open."""

    round: Number
    tensors: ClassVar[Tensors] = Tensors(mask_sum=TensorSpec(torch.int64, ("values",)))


class Unseeded(Message, frozen=True):
    """Dealer to server, in answer to `OpenMasks`: these clients have no seed for the round, so nothing was opened."""

    round: Number
    clients: tuple[PartyName, ...]


# Messages between clients and server in training.
TrainingBody: TypeAlias = (
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
    | GaveUp
    | SeedsLost
    | NewSeeds
    | GreetAgain
    | Waiting
)
# Messages of both with the dealer in training.
TrainingDealerBody: TypeAlias = BeginRun | JoinRun | RunSeed | OpenMasks | MaskSum | Unseeded | Done | Refused
