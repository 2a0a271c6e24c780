"""A run's training at the server, without sockets: who is there, round after round, and how a round ends.

A client that sends nothing for too long is dropped from its round; the others go on without it and the average is over
those whose uploads arrived. It may come back at any time and takes part again from the next round on.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from splitsec.cut.belonging import check_belongs
from splitsec.cut.origin import Origin, origin_of, set_origin
from splitsec.errors import (
    MessageError,
    PartyTimeoutError,
    RandomnessError,
    RefusedError,
    RestartedError,
    SplitsecError,
)
from splitsec.events import Dropped, Joined, Report, RoundDone, ignore
from splitsec.mpc.ring import check_range
from splitsec.party_names import DEALER, SERVER
from splitsec.randomness import OwnRandomness
from splitsec.settings.run import RunSettings
from splitsec.settings.timeouts import Timeouts
from splitsec.training.aggregation import rule_of
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.layouts import layout_of
from splitsec.training.messages import (
    Aligned,
    Batch,
    BeginRun,
    Combined,
    GaveUp,
    GreetAgain,
    Handed,
    HeadGradient,
    Hello,
    MaskSum,
    Missed,
    NewSeeds,
    Opened,
    OpenMasks,
    Points,
    Return,
    SeedsLost,
    Unseeded,
    Upload,
    Welcome,
)
from splitsec.training.server.admission import check_architecture, check_hello
from splitsec.training.server.checkpoint import ServerCheckpoints, mark_of
from splitsec.training.server.intersection import Aligner
from splitsec.training.server.privacy import Budgeting
from splitsec.training.server.round import Round
from splitsec.training.step import set_rate
from splitsec.training.tail import TailTrainer
from splitsec.training.tail_per_client import ClientTails
from splitsec.transport import NO_TENSORS, Message, NamedTensors, Refused, expect_shape
from splitsec.transport.outgoing import Outgoing

log = logging.getLogger(__name__)


class RunFailed(Exception):
    """The run cannot go on, for any client."""

    def __init__(self, reason: SplitsecError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True)
class _Question:
    """A request to the dealer that is not answered yet: what its answer, or an error in its place, leads to."""

    answered: Callable[[Message, NamedTensors, float], None]
    failed: Callable[[SplitsecError, float], None]


class ServerRun:
    """The training of one run: `handle` each message, `tick` now and then, and send what they give, all of it.

    A request to the dealer is returned like any message; its answer is handled as one of `DEALER`, before any other
    message, or `dealer_failed` is told the error.

    Args:
        tail: trained in place.
        timeouts: how long the others wait for a client, and for all to come.
        checkpoints: where to keep and find them; None keeps none.
        seed: of dropout and the like in the tail; None for a random one.

    Attributes:
        members: what each client said of itself, by name.
        number: the round that is running; None before the first.
        rounds: how many the run has.
        finished: whether the last round is over.
    """

    def __init__(
        self,
        tail: nn.Module,
        *,
        cut: str,
        settings: RunSettings,
        timeouts: Timeouts,
        checkpoints: Checkpoints | None = None,
        seed: int | None = None,
        report: Report = ignore,
    ) -> None:
        self._tail = tail
        self._cut = cut
        self.settings = settings
        self._timeouts = timeouts
        self._report = report
        self._out: list[Outgoing] = []
        self._question: _Question | None = None
        # Dropout from a seed that others know would tell them how many rows are in a step.
        randomness = OwnRandomness(None if settings.privacy.epsilon else seed)
        trainer = ClientTails if settings.privacy.by_client else TailTrainer
        self._trainer = trainer(tail, learning_rate=settings.learning_rate, randomness=randomness)
        if settings.privacy.epsilon:
            from splitsec.privacy.dp_sgd import check_private

            check_private(tail)
        self._layout = layout_of(settings, cut)
        self._steps = self._layout.gatherer(self._trainer, cut=cut, settings=settings)
        self._aligner = Aligner(settings.clients) if self._layout.aligns_rows else None
        self._rule = rule_of(settings).server(settings)
        self._kept = ServerCheckpoints(checkpoints, cut=cut, settings=settings)
        self._budget = Budgeting(settings, self._kept.facts)
        # The clients whose sums were opened in the last rounds, and the round that this start was the first to know.
        self._opened: dict[int, tuple[str, ...]] = {}
        self._first_round = 0
        self._id = self._kept.run or secrets.token_hex(16)
        self._start = secrets.token_hex(16)
        self.members: dict[str, Hello] = {}
        self.number: int | None = None
        self.rounds = self._kept.rounds
        self._samples = self._kept.samples
        self._architecture = origin_of(tail).architecture
        self._mark = ""
        self._round = Round(0)
        self._returning: set[str] = set()
        self._progress: float | None = None
        # Rows are aligned for predictions alone too.
        self.finished = settings.epochs == 0 and not self._layout.aligns_rows
        # The end of the last round, for a client that comes back after it.
        self._last_end: Combined | None = None
        # In a relay, the clients that wait for segments that their holder was asked for.
        self._owed: tuple[str, ...] = ()

    def handle(self, name: str, body: Message, tensors: NamedTensors, *, now: float) -> Iterator[Outgoing]:
        """Handle a message of a client, or the dealer's answer; return what to send.

        Raises:
            SplitsecError: it is refused; nothing has changed.
            RunFailed: the run is over for all.
        """
        if name == DEALER:
            question, self._question = self._question, None
            if question is None:
                raise MessageError(f"{type(body).__name__} was not due")
            question.answered(body, tensors, now)
            return self._said()
        match body:
            case Hello():
                self._greet(name, body, now)
            case Batch(number) | HeadGradient(number):
                if self._in_round(name, number):
                    if name in self._round.uploaded:
                        raise MessageError(f"{name} has sent its part and must wait for the others")
                    self._steps.add(name, body, tensors)
                    self._progress = now
            case Upload(number):
                if self._in_round(name, number):
                    self._add_upload(name, tensors, now)
            case GaveUp(reason):
                self._give_up(name, reason, now)
            case SeedsLost(start):
                if start == self._start and not self.finished:
                    self._check_seeds_lost(name)
            case Handed():
                self._hand_on(name, body, tensors["sealed"], now)
            case Points() | Aligned():
                self._align(name, body, tensors, now)
            case Return() if self.finished and self._last_end is not None:
                self._send_end(name)
            case Return():
                if name in self.members and name not in self._round.active and name not in self._round.idle:
                    self._returning.add(name)
            case other:
                raise MessageError(f"the server does not answer {type(other).__name__}")
        return self._said()

    def dealer_failed(self, error: SplitsecError, *, now: float) -> Iterator[Outgoing]:
        """Go on where the dealer answered a request with an error; return what to send. Raises `RunFailed`."""
        question, self._question = self._question, None
        assert question is not None
        question.failed(error, now)
        return self._said()

    def tick(self, now: float) -> Iterator[Outgoing]:
        """See to the time limits; return what to send. Raises `RunFailed` if too few clients are left."""
        if self.finished:
            return self._said()
        if self._progress is None:
            self._progress = now
        silent = now - self._progress
        if self.number is None:
            self._tick_gathering(silent, now)
        elif self._aligner is not None and self._aligning:
            if silent > self._timeouts.timeout:
                who = ", ".join(self._aligner.missing)
                raise RunFailed(
                    PartyTimeoutError(f"{who} sent nothing for {self._timeouts.timeout:g} s while rows align")
                )
        else:
            self._tick_round(silent, now)
        return self._said()

    def _tick_gathering(self, silent: float, now: float) -> None:
        if silent <= self._timeouts.join_timeout:
            return
        missing = [name for name in self.settings.clients if name not in self.members]
        if len(self.members) < max(1, self._minimum):
            raise RunFailed(
                PartyTimeoutError(f"{', '.join(missing)} did not come within {self._timeouts.join_timeout:g} s")
            )
        self._begin(now)

    def _tick_round(self, silent: float, now: float) -> None:
        current, limit = self._round, self._timeouts.timeout
        if self._owed and silent > limit:
            # Not the fault of those who wait for it.
            log.warning("%s was to hand its segments on and sent nothing for %g s", self._rule.holder, limit)
        missing = [name for name in current.training if not self._steps.has(name)]
        over = self._timeouts.round_timeout is not None and now - current.began > self._timeouts.round_timeout
        if over and len(missing) < len(current.active):
            # Those who wait have done their part so far, and have as long again for the rest.
            current.began = now
            self._drop(missing, f"kept the others waiting in round {current.number + 1} beyond its time limit", now)
        elif silent > limit:
            self._drop(missing, f"sent nothing for {limit:g} s in round {current.number + 1}", now)

    def refresh(self, before: float, now: float) -> None:
        """Do not count the time that handling a message took as silence: `before` is when that was begun."""
        if self._progress == before:
            self._progress = now
        if self._round.began == before:
            self._round.began = now

    def gone(self, name: str, *, now: float) -> Iterator[Outgoing]:
        """Go on at once without a client that is known to be gone; return what to send."""
        if self.number is not None and name in self._round.training:
            self._drop([name], f"is gone in round {self.number + 1}", now)
        return self._said()

    @property
    def waiting(self) -> list[str]:
        """Return the clients that have sent their part and wait for others."""
        if self.number is None or self._aligning:
            return list(self.members)
        current = self._round
        done = [name for name in current.active if name in current.uploaded or self._steps.has(name)]
        return done + current.idle + sorted(self._returning)

    def _said(self) -> Iterator[Outgoing]:
        """Give what is to be sent: what was said first, then the answers of each step that is complete.

        Answers are given one by one, so that a client need not wait until those of the others are computed.
        """
        out, self._out = self._out, []
        yield from out
        if self.number is None or self._aligning or self.finished:
            return
        try:
            yield from self._steps.step_when_complete(self._round.training)
        except SplitsecError as error:
            raise RunFailed(error) from error

    def _send(self, name: str, body: Message, tensors: NamedTensors = NO_TENSORS) -> None:
        self._out.append(Outgoing(name, body, tensors))

    def _refuse(self, name: str, error: SplitsecError) -> None:
        self._send(name, Refused(reason=str(error), error=type(error).__name__))

    def _ask_dealer(
        self,
        body: Message,
        answered: Callable[[Message, NamedTensors, float], None],
        failed: Callable[[SplitsecError, float], None] | None = None,
    ) -> None:
        self._question = _Question(answered, failed or self._fail)
        self._send(DEALER, body)

    @staticmethod
    def _fail(error: SplitsecError, _now: float) -> None:
        raise RunFailed(error) from error

    @property
    def _minimum(self) -> int:
        """Return the fewest clients that a round needs."""
        return len(self.settings.clients) if self._layout.aligns_rows else self._rule.minimum

    @property
    def _aligning(self) -> bool:
        return self._aligner is not None and self._aligner.rows is None

    # Coming and going.

    def _greet(self, name: str, hello: Hello, now: float) -> None:
        self._check_hello(name, hello)
        if self.number is None:
            self._progress = now
        else:
            self._check_return(name, hello)
        self.members[name] = hello
        self._report(Joined(SERVER, name))
        if self.number is not None:
            self._greet_again(name, hello, now)
        elif len(self.members) == len(self.settings.clients):
            self._begin(now)

    def _check_hello(self, name: str, hello: Hello) -> None:
        check_hello(name, hello, cut=self._cut, settings=self.settings, layout=self._layout, members=self.members)
        check_architecture(name, hello, self._architecture)
        if hello.columns is not None and not self.settings.epochs:
            check_belongs(name, hello.columns.origin, origin_of(self._tail))
        if self.finished and self.number is None:
            raise RefusedError(
                "the server's run has no training (epochs = 0): clients of predictions alone have train = false, and "
                "as weights the front that belongs to the server's tail"
            )
        if hello.shape and not self._layout.aligns_rows:
            self._trainer.check_activation(torch.zeros(1, *hello.shape))

    def _check_return(self, name: str, hello: Hello) -> None:
        """Raise `RefusedError` for a client that cannot come (back) into the run now."""
        known = self.members.get(name)
        if known is not None and known.samples != hello.samples:
            raise RefusedError(f"{name} has {hello.samples} samples now and began with {known.samples}")
        self._layout.check_return(finished=self.finished)

    def _greet_again(self, name: str, hello: Hello, now: float) -> None:
        """Greet a client that was started again, or that comes late, whatever is left of its earlier life."""
        assert self.number is not None
        known = hello.run == self._id and self.number in hello.rounds
        self._rule.started_again(name, has_segments=known)
        if self.finished:
            self._tell_unserved()
        running = not self.finished and name in self._round.training
        # Steps that a budget has counted are not taken again.
        too_few = len(self._round.active) - 1 < self._minimum and not self._budget.plan and not self._rule.takes_turns
        if running and too_few and self._kept.on_disk:
            self._begin_again(name, now)
            return
        if running:
            self._drop([name], "was started again", now)
        self._steps.drop(name)
        if self.finished:
            self._welcome_at_the_end(name)
            return
        self._returning.add(name)
        self._welcome(name, self.number + 1, wait=True)

    def _begin_again(self, name: str, now: float) -> None:
        """Begin the round anew for all, from the checkpoint of its beginning, with a client that was started again."""
        assert self.number is not None
        log.warning("%s was started again, and round %d begins anew for all", name, self.number + 1)
        others = [other for other in self.members if other != name]
        self._start = secrets.token_hex(16)
        self._kept.look_again()
        self.members = {name: self.members[name]}
        self.number = None
        self._round, self._returning = Round(0), set()
        self._progress = now
        for other in others:
            self._send(other, GreetAgain())

    def _welcome(self, name: str, number: int, combined: torch.Tensor | None = None, *, wait: bool = False) -> None:
        mark = self._mark if number >= self.rounds else ""
        plan = self._budget.plan
        welcome = Welcome(self._id, self._start, self.settings, number, self.rounds, wait, plan, mark)
        self._send(name, welcome, {"combined": combined})

    def _welcome_at_the_end(self, name: str) -> None:
        if self._last_end is None:
            self._welcome(name, self.rounds, self._rule.last)
        else:
            self._welcome(name, self.rounds, wait=True)
            self._send_end(name)

    def _give_up(self, name: str, reason: str, now: float) -> None:
        """Go on without a client that has said that it ends."""
        if self.number is None:
            # It may come back until all are there.
            if self.members.pop(name, None) is not None:
                self._report(Dropped(SERVER, name=name, round=1, reason=reason))
            return
        self._returning.discard(name)
        self._round.idle = [other for other in self._round.idle if other != name]
        if self.finished or name not in self._round.training:
            return
        if self._aligning:
            raise RunFailed(RefusedError(f"{name} {reason}, and without its columns nobody can train"))
        self._drop([name], reason, now)

    # The beginning.

    def _begin(self, now: float) -> None:
        """Begin with the newest round that everybody can go on from."""
        # On from checkpoints there are as many rounds as at the beginning, whoever has come this time.
        self._samples = self._samples or sum(hello.samples for hello in self.members.values())
        self.rounds = self.rounds or self.settings.rounds(self._samples)
        if self.settings.epochs:
            set_origin(self._tail, Origin(architecture=self._architecture))
        known = {name: hello.rounds if hello.run == self._id else (0,) for name, hello in self.members.items()}
        self.number = self._first_round = self._kept.common_round(known.values())
        self._mark = self._kept.restore(self.number, self._tail, self._trainer, self._rule)
        try:
            self._kept.check_marks(self.members, run=self._id, number=self.number, mark=self._mark)
            self._layout.check_members(self.members, self.settings, self._trainer)
            samples = sum(hello.samples for hello in self.members.values())
            self.rounds = self._budget.begin(samples=samples, number=self.number, rounds=self.rounds)
        except SplitsecError as error:
            raise RunFailed(error) from error
        if self._budget.tail is not None:
            self._trainer.protect(self._budget.tail, jointly=self.settings.privacy.sums_steps)
        fresh = not self._kept.saved
        if fresh or self._budget.plan is not None:
            self._save()

        def go_on(now: float) -> None:
            for name, rounds in known.items():
                self._welcome_from(name, rounds)
            self._round = Round(self._first_round, active=list(self.members))
            self._progress = now
            if not self._aligning:
                self._next_round(now)

        if self._rule.seeded or self._layout.aligns_rows:
            self._ask_dealer(BeginRun(self._id, self._start, fresh=fresh), lambda _body, _tensors, later: go_on(later))
        else:
            go_on(now)

    def _welcome_from(self, name: str, rounds: Sequence[int]) -> None:
        """Welcome a client that can go on from `rounds`; without the round that begins, with the last values."""
        assert self.number is not None
        values = None if self.number in rounds else self._rule.last
        if self.number not in rounds and values is None:
            raise RunFailed(self._kept.not_of_one_run(name, rounds[-1], self.number))
        self._welcome(name, self.number, values)

    def _align(self, name: str, body: Points | Aligned, tensors: NamedTensors, now: float) -> None:
        if self._aligner is None or self.number is None or not self._aligning:
            raise MessageError(f"{type(body).__name__} was not due")
        self._progress = now
        if isinstance(body, Points):
            self._out += self._aligner.points(name, body, tensors["points"])
            return
        try:
            self._aligner.aligned(name, body)
        except SplitsecError as error:
            raise RunFailed(error) from error
        if not self._aligning:
            self._next_round(now)
            for client in self.settings.clients:
                self._send(client, body)

    # Rounds.

    def _next_round(self, now: float) -> None:
        assert self.number is not None
        if self.number >= self.rounds:
            self._finish()
            return
        before = self._round
        there = [name for name in self.settings.clients if name in before.active or name in self._returning]
        self._returning = set()
        try:
            active = self._rule.trainers(self.number, there)
        except SplitsecError as error:
            raise RunFailed(error) from error
        idle = [name for name in there if name not in active]
        current = self._round = Round(self.number, active, idle, now)
        set_rate(self._trainer.optimizer, self.settings.rate(self.number, self.rounds))
        samples = {name: self.members[name].samples for name in active}
        self._steps.begin(samples)
        self._trainer.begin_round(samples)
        self._trainer.expected = self._budget.expected(samples)
        self._progress = now
        if len(active) < self._minimum:
            raise RunFailed(PartyTimeoutError(self._too_few(active)))
        if not there:
            raise RunFailed(PartyTimeoutError("no client is left"))
        if not current.active:
            self._end_round(now)

    def _finish(self) -> None:
        self.finished = True
        self._trainer.close()
        if self.settings.epochs:
            set_origin(self._tail, Origin(self._mark, self._architecture, self._id, self.rounds))
        self._tell_unserved()

    def _in_round(self, name: str, number: int) -> bool:
        """Return whether a message belongs to the current round. A late sender is told so; that is not an error."""
        if self.number is None or (self.finished and self._last_end is None):
            raise RefusedError("no training is running")
        if number > self.number or (self.finished and number == self.number):
            raise MessageError(f"round {number} is not running; the run is in round {self.number}")
        current = self._round
        if name in current.active and number == self.number and not self.finished:
            return True
        if name not in self.members:
            raise RefusedError(f"{name} has not joined the run")
        if self.finished or (name not in current.active and name not in current.idle):
            log.info("%s is late for round %d", name, number + 1)
            self._send(name, Missed(number))
        return False

    def _add_upload(self, name: str, tensors: NamedTensors, now: float) -> None:
        current = self._round
        if name in current.uploaded:
            raise MessageError(f"{name} has sent its part and must wait for the others")
        if self._steps.owes(name):
            raise MessageError(f"{name} has a step that is not finished")
        norms: torch.Tensor | None = tensors.get("row_norms")
        if self._rule.takes_norms != (norms is not None):
            raise MessageError(f"Upload: row_norms {'is missing' if norms is None else 'was not due'}")
        if norms is not None:
            expect_shape(norms, (len(self._trainer.norms.get(name, ())),), what="Upload: row_norms")
            check_range(norms, limit=float("inf"), what=f"a norm of {name}")
            current.norms[name] = norms
        vector = self._rule.add_upload(
            name,
            tensors["masked"],
            length=self.members[name].values + self._layout.figures,
            round_number=current.number,
            rounds=self.rounds,
        )
        self._progress = now
        current.uploaded.add(name)
        if vector is not None:
            current.vectors[name] = vector
        self._go_on(now)

    def _go_on(self, now: float) -> None:
        if self._round.complete:
            self._end_round(now)

    def _drop(self, names: Sequence[str], why: str, now: float) -> None:
        if not names:
            return
        number = self._round.number
        self._round.drop(names)
        for name in names:
            self._steps.drop(name)
            self._report(Dropped(SERVER, name=name, round=number + 1, reason=why))
            # If it is still there, it says so.
            self._send(name, Missed(number))
        self._progress = now
        if len(self._round.active) < self._minimum:
            raise RunFailed(PartyTimeoutError(f"{', '.join(names)} {why}; {self._too_few(self._round.active)}"))
        self._go_on(now)

    def _leave_out(self, names: Sequence[str], now: float) -> None:
        """End the round without the uploads of clients that have no seed of it at the dealer, and tell them why."""
        number = self._round.number
        why = f"uploaded without a seed from the dealer for round {number + 1}"
        error = RandomnessError(f"{', '.join(names)} {why}; join the run at the dealer first")
        log.warning("%s", error)
        self._round.drop(names)
        for name in names:
            self._report(Dropped(SERVER, name=name, round=number + 1, reason=why))
            self._refuse(name, error)
        if len(self._round.active) < self._minimum:
            raise RunFailed(RandomnessError(f"{error}; {self._too_few(self._round.active)}"))
        self._go_on(now)

    def _too_few(self, names: Sequence[str]) -> str:
        left = f"only {', '.join(names)} is left" if len(names) == 1 else f"{len(names)} clients are left"
        return f"{left}, and the minimum is {self._minimum}"

    # The end of a round.

    def _end_round(self, now: float) -> None:
        current = self._round
        # In the run's order, so that who was faster does not decide about rounding.
        ordered = {name: current.vectors[name] for name in self.settings.clients if name in current.vectors}
        if not self._rule.masked:
            self._close_round([], (), now)
            return
        names, length = tuple(ordered), len(next(iter(ordered.values())))

        def answered(body: Message, tensors: NamedTensors, now: float) -> None:
            if isinstance(body, Unseeded) and body.round == current.number and set(body.clients) & set(names):
                self._leave_out([name for name in names if name in body.clients], now)
                return
            if not isinstance(body, MaskSum) or body.round != current.number:
                raise RunFailed(MessageError("the dealer answered another request"))
            try:
                mask_sum = expect_shape(tensors["mask_sum"], (length,), what="the sum of masks")
                combined = self._rule.combine(
                    ordered,
                    mask_sum,
                    self.members,
                    learning_rate=self.settings.rate(current.number, self.rounds),
                    expected=sum(self._trainer.expected.get(name, 0.0) for name in names),
                )
            except SplitsecError as error:
                raise RunFailed(error) from error
            self._close_round([combined], names, now)

        self._ask_dealer(
            OpenMasks(self._id, self._start, current.number, names, length), answered, self._renew_if_restarted
        )

    def _renew_if_restarted(self, error: SplitsecError, now: float) -> None:
        if not isinstance(error, RestartedError):
            raise RunFailed(error) from error
        self._renew_seeds(now)

    def _close_round(self, combined: list[torch.Tensor], names: Sequence[str], now: float) -> None:
        """Send all clients the end of the round, and begin the next.

        Args:
            combined: what the clients' uploads were combined to, if anything.
            names: the clients whose uploads are in it.
        """
        assert self.number is not None
        current = self._round
        self._trainer.end_round({name: current.norms.get(name) for name in names})
        figures = combined[0][-self._layout.figures :].tolist() if combined and self._layout.figures else None
        loss, accuracy = figures or (self._steps.book.loss, self._steps.book.accuracy)
        if self._rule.masked:
            # Earlier ones cannot be repeated: a run goes on from one of the last two rounds.
            self._opened = {number: who for number, who in self._opened.items() if number >= self.number - 1}
            self._opened[self.number] = tuple(names)
        self.number += 1
        self._budget.end_round()
        if self._kept.on_disk or self.number >= self.rounds:
            self._mark = mark_of(self._tail, combined)
        self._save()
        # A client that vanished after its upload and is back is among both.
        there = list(dict.fromkeys([*current.active, *current.idle, *sorted(self._returning)]))
        # What others lost on their batches is beyond any budget.
        told = (0.0, 0.0) if self._budget.plan is not None else (loss, accuracy)
        dropped = tuple(current.dropped)
        self._last_end = Combined(current.number, *told, dropped=dropped, mark=self._mark)
        self._owed = self._rule.owed(self.number, self.rounds, there)
        for name in there:
            self._send(name, *self._rule.end_for(name, self._last_end, self._owed))
        self._report(
            RoundDone(
                SERVER,
                round=self.number,
                rounds=self.rounds,
                loss=loss,
                accuracy=accuracy,
                bytes_sent=0,
                bytes_received=0,
                samples=self._steps.samples,
                dropped=dropped,
            )
        )
        current.active += current.idle
        self._next_round(now)

    def _send_end(self, name: str) -> None:
        """Tell a client that comes when the run is over how the last round ended.

        Raises:
            PartyTimeoutError: in a relay, no party has the segments any more.
        """
        assert self._last_end is not None
        if not self._rule.serves(name) and name not in self._owed:
            raise self._lost_segments()
        self._send(name, *self._rule.end_for(name, self._last_end, self._owed))

    def _tell_unserved(self) -> None:
        """Tell those who wait at the end of a relay for segments that no party can send them any more."""
        if self._owed and not self._rule.lost:
            return
        self._owed = ()
        for name in self.members:
            if not self._rule.serves(name):
                self._refuse(name, self._lost_segments())

    def _lost_segments(self) -> PartyTimeoutError:
        return PartyTimeoutError(
            f"the newest segments of this relay are with {self._rule.holder}, which is gone: begin a new run, with "
            "checkpoints"
        )

    def _hand_on(self, name: str, body: Handed, sealed: Sequence[torch.Tensor], now: float) -> None:
        """Pass on what the holder in a relay sends for those who were owed it."""
        if not self._rule.takes_turns or self.number is None:
            raise MessageError("Handed was not due")
        if not self._owed or body.pad != 2 * (self.number - 1) + 1:
            # The round for which it was asked has ended without it.
            log.info("%s hands segments on too late", name)
            return
        self._rule.hand_on(name, self._owed, self.number - 1, sealed)
        for owed in self._owed:
            if owed in self.members:
                self._send(owed, Handed(name, self._rule.pad), {"sealed": [self._rule.sealed_for(owed)]})
        self._owed = ()
        self._progress = now

    # Seeds.

    def _check_seeds_lost(self, name: str) -> None:
        """Renew the seeds where the dealer does not know this start of the run, whatever a client says."""
        if self.number is None or name not in self.members:
            raise MessageError("SeedsLost was not due")

        def failed(error: SplitsecError, now: float) -> None:
            if isinstance(error, RandomnessError) and not isinstance(error, RestartedError):
                refusal = MessageError(f"{name} says that the dealer has lost the run's seeds, and it has not")
                log.warning("refused a message of %s: %s", name, refusal)
                self._refuse(name, refusal)
                return
            self._renew_if_restarted(error, now)

        # It opens nothing, since no sum is over no client.
        question = OpenMasks(self._id, self._start, self.number, (), 0)
        self._ask_dealer(question, lambda _body, _tensors, now: self._renew_seeds(now), failed)

    def _renew_seeds(self, now: float) -> None:
        """Begin the run anew at a dealer that was started again, in the round that is running.

        What has been uploaded is uploaded once more under masks that the dealer knows. It opens a round for the same
        clients only, by the server's record, so that no client's part can be told from two sums.
        """
        assert self.number is not None
        number = self.number
        self._start = secrets.token_hex(16)
        log.warning("the dealer was started again; the run goes on in round %d with new seeds", number + 1)
        # Whether the round from which a run goes on had been opened before, its earlier start alone knew.
        complete = not self._kept.saved or number > self._first_round
        opened = tuple(Opened(number, clients) for number, clients in sorted(self._opened.items()))

        def begun(_body: Message, _tensors: NamedTensors, now: float) -> None:
            current = self._round
            self._rule.renew()
            current.forget_uploads()
            for name in dict.fromkeys([*current.active, *current.idle, *sorted(self._returning)]):
                self._send(name, NewSeeds(self._start, number if name in current.active else number + 1))
            self._progress = now

        self._ask_dealer(BeginRun(self._id, self._start, fresh=False, opened=opened if complete else None), begun)

    def _save(self) -> None:
        assert self.number is not None
        facts = {"run": self._id, "rounds": self.rounds, "samples": self._samples, "mark": self._mark}
        facts |= self._budget.facts(more=self.number < self.rounds)
        try:
            self._kept.save(self.number, facts, self._tail, self._trainer, self._rule)
        except SplitsecError as error:
            raise RunFailed(error) from error
