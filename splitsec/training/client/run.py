"""A client's part in a run's training, without sockets: what it says, and what it does with what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from splitsec.data.columns import Columns, split_aligned
from splitsec.data.loaders import Loader
from splitsec.data.rows import Part
from splitsec.errors import ConfigError, MessageError, RestartedError, SplitsecError
from splitsec.events import Joined, Report, ignore
from splitsec.party_names import SERVER
from splitsec.randomness import RunRandomness
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.client.checkpoint import ClientCheckpoints
from splitsec.training.client.greeting import TRAINS, Purpose, columns_part, hello_of, inspect
from splitsec.training.client.intersection import Alignment
from splitsec.training.client.learner import Learner
from splitsec.training.client.privacy import ClientPrivacy
from splitsec.training.client.training import Training
from splitsec.training.flat_state import Combinable
from splitsec.training.messages import Aligned, Missed, Places, Points, RunSeed, SeedsLost, Waiting, Welcome
from splitsec.transport import Message, NamedTensors
from splitsec.transport.outgoing import Outgoing


@dataclass(frozen=True)
class Participation:
    """How a client takes part in a run.

    Attributes:
        name: of the client.
        cut: the name of the cut.
        seed: goes into the order of the batches, dropout and the like, beside a secret of this run alone.
        repeatable: without that secret, see `RunRandomness`; needs a seed.
        epsilon_limit: what all runs together may spend of any record, by the ledgers; 0 for no limit.
        purpose: with columns, what it is here for.
    """

    name: str
    cut: str
    seed: int | None = None
    repeatable: bool = False
    epsilon_limit: float = 0.0
    purpose: Purpose = TRAINS


class ClientRun:
    """Trains front and head with the server: `begin` says hello, `handle` answers each message, until `done`.

    Args:
        segments: the front and, of a U, the head; trained in place.
        data: this client's rows, or its columns where the server joins activations.
        checkpoints: where to keep and find them; None keeps none.
        ledgers: the directory of this client's privacy ledgers; None keeps none.

    Attributes:
        training: the rounds since the last welcome; None before the first.
        columns: of the rows that all clients have, in the order that all clients share (training rows first),
            standardised with the training rows' mean and deviation; None where rows are not aligned.
        training_rows: how many of them are for training.
    """

    def __init__(
        self,
        segments: Sequence[nn.Module],
        data: Part | Columns,
        participation: Participation,
        *,
        checkpoints: Checkpoints | None = None,
        ledgers: Path | None = None,
        report: Report = ignore,
    ) -> None:
        how = self._how = participation
        kept = ClientCheckpoints(checkpoints, segments, data, name=how.name)
        randomness = kept.randomness(how.seed, repeatable=how.repeatable)
        self._learner = Learner(
            how.name,
            how.cut,
            segments,
            Combinable(segments),
            data,
            kept,
            randomness,
            ledgers,
            how.epsilon_limit,
            report=report,
        )
        self.training: Training | None = None
        self._alignment: Alignment | None = None
        self.columns: Columns | None = None
        self.training_rows = 0

    @property
    def done(self) -> bool:
        """Return whether the run is over and the segments are final."""
        return self.training is not None and self.training.done

    @property
    def welcome(self) -> Welcome | None:
        """Return what the server said at the beginning; None before."""
        return None if self.training is None else self.training.welcome

    @property
    def protection(self) -> ClientPrivacy | None:
        """Return what the run does for this client's privacy; None before the welcome."""
        return None if self.training is None else self.training.protection

    def begin(self) -> list[Outgoing]:
        """Return what to say first; raises `ConfigError` for data that the segments cannot learn from."""
        learner = self._learner
        front = learner.segments[0]
        learner.data, shape = inspect(learner.data, front, name=learner.name, cut=learner.cut)
        data = learner.data
        hello = hello_of(
            learner.segments,
            learner.state,
            learner.kept,
            cut=learner.cut,
            samples=len(data.ids) if isinstance(data, Columns) else len(data.train_labels),
            shape=shape,
            columns=columns_part(data, front, self._how.purpose),
        )
        return [Outgoing(SERVER, hello)]

    def handle(self, body: Message, tensors: NamedTensors) -> list[Outgoing]:
        """Handle a message of the server or the dealer; return what to send.

        Raises:
            MessageError, RangeError: the message cannot be used.
        """
        if isinstance(body, Welcome):
            return self._join(body, tensors.get("combined"))
        training = self.training
        if training is None:
            if isinstance(body, (Waiting, Missed)):
                return []
            raise MessageError(f"{type(body).__name__} was not due in training")
        alignment = self._alignment
        if alignment is None or not self._aligns(training, body):
            return training.handle(body, tensors)
        return self._align(training, alignment, body, tensors)

    @staticmethod
    def _aligns(training: Training, body: Message) -> bool:
        """Return whether a message belongs to the alignment of rows; the first seed of the dealer begins it."""
        return isinstance(body, (Points, Places, Aligned)) or (
            isinstance(body, RunSeed) and not training.seeds.current.own
        )

    def _align(self, training: Training, alignment: Alignment, body: Message, tensors: NamedTensors) -> list[Outgoing]:
        match body:
            case RunSeed():
                training.handle(body, tensors)
                return [Outgoing(SERVER, Points(self._learner.name), {"points": alignment.mine()})]
            case Points(owner):
                multiplied = alignment.pass_on(tensors["points"], owner)
                return [Outgoing(SERVER, Points(owner), {"points": multiplied})]
            case Places():
                return self._order_rows(alignment, tensors["places"])
            case _:
                return self._begin_rounds(training)

    def dealer_failed(self, error: SplitsecError) -> list[Outgoing]:
        """Return what to say where the dealer answered with an error; raises those that end the run."""
        if not isinstance(error, RestartedError) or self.training is None:
            raise error
        # The dealer does not know this start of the run any more; the server makes a new one.
        return [Outgoing(SERVER, SeedsLost(self.training.seeds.start))]

    def close(self) -> None:
        """Take off what training has put around the segments."""
        if self.training is not None:
            self.training.close()

    def pair_seed(self, other: str) -> bytes:
        """Return what this client and another share, and no other party; raises `MessageError` for a stranger."""
        if self.training is None:
            raise MessageError(f"{other} takes no part in this run")
        return self.training.seeds.shared_with(other)

    def _join(self, welcome: Welcome, combined: torch.Tensor | None) -> list[Outgoing]:
        learner, before = self._learner, self.training
        data = learner.data
        if before is None:
            learner.report(Joined(learner.name, SERVER))
        if isinstance(data, Columns) != (welcome.settings.join is not None):
            has, wants = ("columns", "rows") if isinstance(data, Columns) else ("rows", "columns")
            raise ConfigError(
                f"{learner.name} has {has} of the data, but the server's run is one of clients with {wants}"
            )
        steps = learner.kept.taken
        if before is not None:
            # Its front may be called in plain, so what another welcome put around it comes off.
            before.close()
            # A second welcome goes on where the first left off.
            steps = max(steps, before.protection.taken)
        if learner.kept.run and welcome.run != learner.kept.run:
            # No two runs have the same secret, also where checkpoints of another lie about.
            learner.randomness = RunRandomness(learner.randomness.seed, repeatable=self._how.repeatable)
        training = self.training = Training(learner, welcome, combined, taken=steps)
        self._alignment = Alignment(data.ids) if isinstance(data, Columns) else None
        return training.begin()

    def _order_rows(self, alignment: Alignment, places: torch.Tensor) -> list[Outgoing]:
        """Put the common rows into the order that all clients share."""
        assert isinstance(self._learner.data, Columns)
        assert self.training is not None
        rows = alignment.common(places)
        settings = self.training.welcome.settings
        # Without training all rows are for prediction, in the order of their ids.
        train: list[int] = []
        test = list(range(len(rows)))
        if settings.epochs:
            train, test = split_aligned(len(rows), settings.held_out, settings.row_order_seed)
        self.training_rows = len(train)
        columns = self._learner.data.take([rows[place] for place in (*train, *test)])
        self.columns = columns.standardised(len(train))
        return [Outgoing(SERVER, Aligned(len(rows)))]

    def _begin_rounds(self, training: Training) -> list[Outgoing]:
        if self.columns is None:
            raise MessageError("Aligned was not due")
        labels, count = self.columns.labels, self.training_rows
        settings = training.welcome.settings
        rows = self.columns.values[:count], None if labels is None else labels[:count]
        training.load_from(Loader(*rows, batch_size=settings.batch_size, seed=settings.row_order_seed))
        return training.go_on()
