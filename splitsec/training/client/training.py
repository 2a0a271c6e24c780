"""The rounds of a run at a client, from one welcome on: what it sends, and what it does with the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from splitsec.data.columns import Columns
from splitsec.data.loaders import Loader
from splitsec.errors import ConfigError, MessageError
from splitsec.events import RoundDone
from splitsec.mpc.ring import check_range
from splitsec.party_names import SERVER
from splitsec.training.aggregation import Member, rule_of
from splitsec.training.client.learner import Learner
from splitsec.training.client.privacy import ClientPrivacy
from splitsec.training.client.seeds import ClientSeeds
from splitsec.training.compression import coders
from splitsec.training.front import FrontTrainer
from splitsec.training.layouts import layout_of
from splitsec.training.messages import (
    Batch,
    Combined,
    Gradient,
    Handed,
    HeadGradient,
    Missed,
    NewSeeds,
    Output,
    Return,
    RunSeed,
    Upload,
    Waiting,
    Welcome,
)
from splitsec.training.step import StepResult, set_rate
from splitsec.transport import Message, NamedTensors, expect_shape
from splitsec.transport.outgoing import Outgoing

log = logging.getLogger(__name__)


Handler = Callable[[Any, NamedTensors], list[Outgoing]]


class Training:
    """A client's rounds from one welcome on: `begin`, then `handle` each message of the server and the dealer.

    Args:
        welcome: what the server said.
        combined: the last combined segments, float64 (length,), where they came with it.
        taken: steps that a privacy budget has counted.

    Attributes:
        done: the run is over and the segments are final.
        protection: what the run does for this client's privacy.
        seeds: of this client's masks.

    Raises:
        ConfigError: the client cannot take part; says why.
    """

    def __init__(self, learner: Learner, welcome: Welcome, combined: torch.Tensor | None, *, taken: int) -> None:
        self.done = False
        self._learner = learner
        self.welcome = welcome
        settings = self._settings = welcome.settings
        data = learner.data
        self.protection = ClientPrivacy(
            learner.name,
            welcome,
            records=data.ids if isinstance(data, Columns) else data.train_images,
            trained=learner.state.trained,
            directory=learner.ledgers,
            taken=taken,
            epsilon_limit=learner.epsilon_limit,
        )
        if settings.privacy.epsilon:
            from splitsec.privacy.dp_sgd import check_private

            for segment in learner.segments:
                check_private(segment)
        layout = layout_of(settings, learner.cut)
        member = Member(
            learner.name, settings, learner.state, learner.first, layout.figures, self.protection, learner.used
        )
        self._length = member.length
        self._rule = rule_of(settings).client(member)
        self._aligns = layout.aligns_rows
        others = tuple(client for client in settings.clients if client != learner.name)
        self.seeds = ClientSeeds(
            welcome.run,
            welcome.start,
            partners=others if self._rule.paired or self._aligns else (),
            noise=self.protection.shares(),
        )
        self._round = welcome.round
        self._missed = welcome.wait
        # Of the segments at the beginning of the round, see `Origin`.
        self._mark = welcome.mark
        # Batches of this round: how many there are, sent, and answered; and the number of its first one.
        self._steps = self._sent = self._answered = self._first = 0
        if not isinstance(data, Columns):
            self.load_from(self.protection.loader(data, learner.randomness.order))
        self._trainer = FrontTrainer(
            learner.segments,
            learning_rate=settings.learning_rate,
            cut=learner.cut,
            in_flight=settings.batches_in_flight,
            proximal=settings.proximal,
            randomness=learner.randomness.generator(),
            privacy=self.protection.front(),
        )
        self._participant = layout.participant(self._trainer)
        self._handlers: dict[type[Message], Handler] = {
            RunSeed: self._add_seeds,
            Output: self._answer,
            Gradient: self._learn,
            Combined: self._end_round,
            Handed: self._add_handed,
            NewSeeds: self._renew_seeds,
            Missed: self._return,
            Waiting: lambda _body, _tensors: [],
        }
        self._restore(combined)

    def _restore(self, combined: torch.Tensor | None) -> None:
        """Go on from the welcome's round: from a checkpoint, or from the segments that came with it."""
        learner, welcome, kept = self._learner, self.welcome, self._learner.kept
        if self._settings.epochs:
            # From here on the values are those of a run that is not over.
            learner.remember_training()
        kept.join(welcome.run, learner.cut, self._settings)
        if welcome.wait and not self._rule.combines and not kept.saved:
            raise ConfigError(
                f"{learner.name} has no checkpoint to come back with, and nothing is combined in this run"
            )
        kept.restore(welcome.round, self._trainer)
        if combined is not None:
            self._load(combined)
        elif welcome.round and welcome.round not in kept.saved and not welcome.wait:
            raise ConfigError(f"{learner.name} has no checkpoint of round {welcome.round}, from which the run goes on")
        if welcome.round >= welcome.rounds:
            # Rows are aligned all the same: predictions need it.
            self._end(over=not welcome.wait and not self._aligns)
        elif kept.kept and not welcome.wait:
            self._save()

    def load_from(self, loader: Loader) -> None:
        """Take batches from a loader."""
        settings = self._settings
        if loader.per_epoch == 1 and settings.rule.averages and not settings.privacy.epsilon:
            log.warning(
                "every step takes all %d rows of %s, so that no order of rows differs from run to run: the sums of a "
                "run with this client and of one without it open its update; ask for a smaller batch size",
                loader.samples,
                self._learner.name,
            )
        self._loader = loader
        self._forget()

    def begin(self) -> list[Outgoing]:
        """Return what to say first: a request for seeds, or the first batches where none are needed."""
        if not self._aligns and (self.done or not self._rule.seeded):
            return self.begin_round()
        return [self.seeds.request(self._round)]

    def close(self) -> None:
        """Take off what training has put around the segments."""
        self._trainer.close()

    def handle(self, body: Message, tensors: NamedTensors) -> list[Outgoing]:
        """Handle a message of the server or the dealer; return what to send.

        Raises:
            MessageError, RangeError: the message cannot be used.
        """
        handler = self._handlers.get(type(body))
        if handler is None:
            raise MessageError(f"{type(body).__name__} was not due in training")
        return handler(body, tensors)

    def _fits(self, body: Output | Gradient) -> bool:
        # An answer to a round that went on without this client is of no use.
        return not self._missed and body.round == self._round and body.step == self._answered

    def _return(self, body: Missed, _tensors: NamedTensors) -> list[Outgoing]:
        """Ask to take part again, where the round goes on without this client."""
        if body.round < self._round or self._missed:
            return []
        self._missed = True
        return [Outgoing(SERVER, Return(body.round))]

    # Seeds.

    def _renew_seeds(self, body: NewSeeds, _tensors: NamedTensors) -> list[Outgoing]:
        return [self.seeds.renew(body.start, body.round)]

    def _add_seeds(self, body: RunSeed, _tensors: NamedTensors) -> list[Outgoing]:
        before = self.seeds.take(body)
        if before is None:
            return self.begin_round() if not self._aligns else []
        again = self._rule.renewed(before, self.seeds.current, self._round)
        return [] if again is None else [Outgoing(SERVER, Upload(self._round), again)]

    # Rounds.

    def _forget(self) -> None:
        """Let both ends remember nothing of earlier batches."""
        self._coders = coders(self._settings.compression, self._loader.samples)

    def begin_round(self) -> list[Outgoing]:
        """Begin the round that comes next, if this client trains in it; return its first batches."""
        if self.done:
            self._trainer.close()
        # With newer segments on their way, they are waited for.
        if self.done or self._missed or not self._rule.trains(self._round) or self._rule.stale:
            return []
        self._trainer.begin_round()
        set_rate(self._trainer.optimizer, self._settings.rate(self._round, self.welcome.rounds))
        self._steps = self.protection.steps or self._settings.steps_per_round or self._loader.per_epoch
        self._first = self._rule.passes(self._round) * self._steps
        self._sent = self._answered = 0
        batches = (self._loader.rows(self._first + step) for step in range(self._steps))
        self.protection.begin_round(self._learner.state.flat, batches)
        return self._next()

    def _next(self) -> list[Outgoing]:
        """Return as many batches as may be on their way; after the last one's answer the upload."""
        most = min(self._steps, self._answered + self._settings.batches_in_flight)
        out: list[Outgoing] = []
        while self._sent < most:
            images, labels, rows = self._loader.batch(self._first + self._sent)
            activation = self._trainer.forward(images)
            tensors = {
                "activation": self._coders[0].pack(activation, rows),
                "labels": self._participant.labels_to_send(labels),
            }
            out.append(Outgoing(SERVER, Batch(self._round, self._sent, tuple(activation.shape[1:])), tensors))
            self._sent += 1
        if self._answered == self._steps:
            out.append(Outgoing(SERVER, Upload(self._round), self._upload()))
        return out

    def _answer(self, body: Output, tensors: NamedTensors) -> list[Outgoing]:
        if not self._fits(body):
            return []
        _, labels, _ = self._loader.batch(self._first + body.step)
        assert labels is not None
        gradient = self._participant.answer(tensors["output"], labels)
        return [Outgoing(SERVER, HeadGradient(body.round, body.step), {"gradient": gradient})]

    def _learn(self, body: Gradient, tensors: NamedTensors) -> list[Outgoing]:
        if not self._fits(body):
            return []
        shape = self._trainer.due
        if shape is None:
            raise MessageError("Gradient was not due")
        norms: torch.Tensor | None = tensors.get("row_norms")
        if self.protection.sums_steps != (norms is not None):
            raise MessageError(f"Gradient: row_norms {'is missing' if norms is None else 'was not due'}")
        gradient = self._coders[1].unpack(tensors["gradient"], shape)
        self._participant.note(StepResult(body.loss, body.correct, gradient))
        self._trainer.backward(gradient, norms)
        self._answered += 1
        return self._next()

    def _vector(self) -> torch.Tensor:
        """Return what others get of this client, its values and then its figures, float64."""
        figures = self._participant.figures(silent=self.protection.silent)
        values = self._rule.values(self._trainer)
        return torch.cat([values, torch.tensor(figures, dtype=torch.float64)]) if figures else values

    def _upload(self) -> NamedTensors:
        if not self._rule.combines:
            return {"masked": []}
        return self._rule.upload(
            self._vector(),
            self._trainer,
            self.seeds.current,
            weight=self._loader.samples,
            round_number=self._round,
            rounds=self.welcome.rounds,
        )

    def _end_round(self, done: Combined, tensors: NamedTensors) -> list[Outgoing]:
        if done.round < self._round and not (self._missed and done.round + 1 == self._round):
            return []
        vector = self._rule.opened(done, tensors, self.seeds.current, self.welcome.rounds)
        if vector is not None:
            self._load(vector)
        if self._learner.name in done.dropped or self._missed:
            self._forget()
        self._missed = False
        self._round = done.round + 1
        self._mark = done.mark
        out: list[Outgoing] = []
        if self._rule.owes:
            vectors = self._rule.again(self._vector(), self.seeds.current, done.round)
            out.append(Outgoing(SERVER, Handed(self._learner.name, 2 * done.round + 1), {"sealed": vectors}))
        self._end(over=self._round >= self.welcome.rounds and not self._rule.stale)
        if self._learner.kept.kept:
            self._save()
        self._report_round(done)
        return out + self.begin_round()

    def _report_round(self, done: Combined) -> None:
        book = self._trainer.book
        own = book.loss, book.accuracy
        loss, accuracy = own if self.protection.silent else (done.loss, done.accuracy)
        known = (own[1] if self._answered else None) if self.protection.ledger else None
        epoch = (self._first + self._answered) / max(1, self._loader.per_epoch)
        self.protection.end_round(self._round, epoch=epoch, accuracy=known)
        self._learner.report(
            RoundDone(
                self._learner.name,
                round=self._round,
                rounds=self.welcome.rounds,
                loss=loss,
                accuracy=accuracy,
                bytes_sent=0,
                bytes_received=0,
                dropped=done.dropped,
            )
        )

    def _add_handed(self, body: Handed, tensors: NamedTensors) -> list[Outgoing]:
        """Load the newest segments of a relay, and begin the round that waited for them."""
        vector = self._rule.opened_late(tensors["sealed"], body.holder, body.pad, self.seeds.current)
        if vector is None:
            return []
        self._load(vector)
        self._end(over=self._round >= self.welcome.rounds)
        return self.begin_round()

    def go_on(self) -> list[Outgoing]:
        """Begin rounds after rows were aligned."""
        self._end(over=self._round >= self.welcome.rounds)
        return self.begin_round()

    # The segments.

    def _load(self, vector: torch.Tensor) -> None:
        """Give the segments the values of a combined vector, float64 (length,)."""
        expect_shape(vector, (self._length,), what="the combined segments")
        check_range(vector, limit=float("inf"), what="the combined segments")
        self._rule.load(vector)

    def _end(self, *, over: bool) -> None:
        """Note whether the run is over; then the segments remember which tail they belong to."""
        self.done = over
        # Without training the segments are what they were.
        if not over or not self._settings.epochs:
            return
        welcome = self.welcome
        self._learner.remember_run(mark=self._mark, run=welcome.run, rounds=welcome.rounds)

    def _save(self) -> None:
        facts: dict[str, object] = {"mark": self._mark}
        if self.protection.ledger is not None:
            facts["taken"] = self.protection.begun
        learner = self._learner
        learner.kept.save(
            self._round, self._trainer, learner.randomness, facts, cut=learner.cut, settings=self._settings
        )
