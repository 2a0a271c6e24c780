"""A run's training at the server, without sockets: what each message of a client and each moment of time lead to.

A client that sends nothing for too long is dropped from its round; the others go on without it and the average is over
those whose uploads arrived. It may come back at any time and takes part again from the next round on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

from splitsec.cut.origin import Origin, set_origin
from splitsec.errors import MessageError, PartyTimeoutError, RefusedError, SplitsecError
from splitsec.party_names import DEALER
from splitsec.training.messages import (
    Aligned,
    Batch,
    GaveUp,
    Handed,
    HeadGradient,
    Hello,
    Points,
    Return,
    SeedsLost,
    Upload,
)
from splitsec.training.server.arrivals import Arrivals
from splitsec.training.server.intersection import Aligner
from splitsec.training.server.outbox import Outbox, RunFailed
from splitsec.training.server.round import Round
from splitsec.training.server.rounds import Rounds
from splitsec.training.server.state import RunParts, RunState
from splitsec.transport import Message, NamedTensors
from splitsec.transport.outgoing import Outgoing

Handler = Callable[[str, Any, NamedTensors, float], None]


class ServerRun:
    """The training of one run: `handle` each message, `tick` now and then, and send what they give, all of it.

    A request to the dealer is returned like any message; its answer is handled as one of `DEALER`, before any other
    message, or `dealer_failed` is told the error.

    Args:
        parts: what it is made of, see `make_parts`.

    Attributes:
        settings: of the run.
        state: where the run is; to be read only.
    """

    def __init__(self, parts: RunParts) -> None:
        settings = parts.settings
        self.settings = settings
        self._parts = parts
        self._aligner = Aligner(settings.clients) if parts.layout.aligns_rows else None
        self.state = RunState(
            id=parts.kept.run or secrets.token_hex(16),
            rounds=parts.kept.rounds,
            samples=parts.kept.samples,
            # Rows are aligned for predictions alone too.
            finished=settings.epochs == 0 and not parts.layout.aligns_rows,
        )
        self._outbox = Outbox()
        self._rounds = Rounds(parts, self.state, self._outbox)
        self._arrivals = Arrivals(parts, self.state, self._outbox, self._rounds)
        self._handlers: dict[type[Message], Handler] = {
            Hello: self._greet,
            Batch: self._add_batch,
            HeadGradient: self._add_batch,
            Upload: self._add_upload,
            GaveUp: self._give_up,
            SeedsLost: self._check_seeds,
            Handed: self._hand_on,
            Points: self._align,
            Aligned: self._align,
            Return: self._return,
        }

    @property
    def number(self) -> int | None:
        """Return the round that is running, from 0 on; None before the first."""
        return self.state.number

    @property
    def rounds(self) -> int:
        """Return how many rounds the run has; 0 before it is known."""
        return self.state.rounds

    @property
    def finished(self) -> bool:
        """Return whether the last round is over."""
        return self.state.finished

    def handle(self, name: str, body: Message, tensors: NamedTensors, *, now: float) -> Iterator[Outgoing]:
        """Handle a message of a client, or the dealer's answer; return what to send.

        Raises:
            SplitsecError: it is refused; nothing has changed.
            RunFailed: the run is over for all.
        """
        if name == DEALER:
            self._outbox.dealer_answered(body, tensors, now)
            return self._said()
        handler = self._handlers.get(type(body))
        if handler is None:
            raise MessageError(f"the server does not answer {type(body).__name__}")
        handler(name, body, tensors, now)
        return self._said()

    def dealer_failed(self, error: SplitsecError, *, now: float) -> Iterator[Outgoing]:
        """Go on where the dealer answered a request with an error; return what to send. Raises `RunFailed`."""
        self._outbox.dealer_failed(error, now)
        return self._said()

    def tick(self, now: float) -> Iterator[Outgoing]:
        """See to the time limits; return what to send. Raises `RunFailed` if too few clients are left."""
        state = self.state
        if state.finished:
            return self._said()
        if state.progress is None:
            state.progress = now
        silent = now - state.progress
        if state.number is None:
            self._tick_gathering(silent, now)
        elif self._aligner is not None and self._aligning:
            limit = self._parts.timeouts.timeout
            if silent > limit:
                who = ", ".join(self._aligner.missing)
                raise RunFailed(PartyTimeoutError(f"{who} sent nothing for {limit:g} s while rows align"))
        else:
            self._tick_round(silent, now)
        return self._said()

    def refresh(self, before: float, now: float) -> None:
        """Do not count the time that handling a message took as silence: `before` is when that was begun."""
        state = self.state
        if state.progress == before:
            state.progress = now
        if state.round.began == before:
            state.round.began = now

    def gone(self, name: str, *, now: float) -> Iterator[Outgoing]:
        """Go on at once without a client that is known to be gone; return what to send."""
        state = self.state
        if state.number is not None and name in state.round.training:
            self._rounds.drop([name], f"is gone in round {state.number + 1}", now)
        return self._said()

    @property
    def waiting(self) -> list[str]:
        """Return the clients that have sent their part and wait for others."""
        state = self.state
        if state.number is None or self._aligning:
            return list(state.members)
        current = state.round
        done = [name for name in current.active if name in current.uploaded or self._parts.steps.has(name)]
        return done + current.idle + sorted(state.returning)

    def _said(self) -> Iterator[Outgoing]:
        """Give what is to be sent: what was said first, then the answers of each step that is complete.

        Answers are given one by one, so that a client need not wait until those of the others are computed.
        """
        yield from self._outbox.take()
        state = self.state
        if state.number is None or self._aligning or state.finished:
            return
        try:
            yield from self._parts.steps.step_when_complete(state.round.training)
        except SplitsecError as error:
            raise RunFailed(error) from error

    def _tick_gathering(self, silent: float, now: float) -> None:
        limit, members = self._parts.timeouts.join_timeout, self.state.members
        if silent <= limit:
            return
        missing = [name for name in self.settings.clients if name not in members]
        if len(members) < max(1, self._parts.minimum):
            raise RunFailed(PartyTimeoutError(f"{', '.join(missing)} did not come within {limit:g} s"))
        self._begin(now)

    def _tick_round(self, silent: float, now: float) -> None:
        current, timeouts = self.state.round, self._parts.timeouts
        if silent > timeouts.timeout:
            self._rounds.handover.warn_silent(timeouts.timeout)
        missing = [name for name in current.training if not self._parts.steps.has(name)]
        over = timeouts.round_timeout is not None and now - current.began > timeouts.round_timeout
        if over and len(missing) < len(current.active):
            # Those who wait have done their part so far, and have as long again for the rest.
            current.began = now
            late = f"kept the others waiting in round {current.number + 1} beyond its time limit"
            self._rounds.drop(missing, late, now)
        elif silent > timeouts.timeout:
            self._rounds.drop(missing, f"sent nothing for {timeouts.timeout:g} s in round {current.number + 1}", now)

    @property
    def _aligning(self) -> bool:
        return self._aligner is not None and self._aligner.rows is None

    # Messages, by class.

    def _greet(self, name: str, body: Hello, _tensors: NamedTensors, now: float) -> None:
        self._arrivals.greet(name, body, now)
        state = self.state
        if state.number is None and len(state.members) == len(self.settings.clients):
            self._begin(now)

    def _add_batch(self, name: str, body: Batch | HeadGradient, tensors: NamedTensors, now: float) -> None:
        if self._rounds.takes(name, body.round):
            if name in self.state.round.uploaded:
                raise MessageError(f"{name} has sent its part and must wait for the others")
            self._parts.steps.add(name, body, tensors)
            self.state.progress = now

    def _add_upload(self, name: str, body: Upload, tensors: NamedTensors, now: float) -> None:
        if self._rounds.takes(name, body.round):
            self._rounds.add_upload(name, tensors, now)

    def _give_up(self, name: str, body: GaveUp, _tensors: NamedTensors, now: float) -> None:
        state = self.state
        if self._aligning and state.number is not None and name in state.round.training:
            raise RunFailed(RefusedError(f"{name} {body.reason}, and without its columns nobody can train"))
        self._arrivals.give_up(name, body.reason, now)

    def _check_seeds(self, name: str, body: SeedsLost, _tensors: NamedTensors, _now: float) -> None:
        if body.start == self.state.start and not self.state.finished:
            self._rounds.seeds.check_lost(name)

    def _hand_on(self, name: str, body: Handed, tensors: NamedTensors, now: float) -> None:
        self._rounds.handover.hand_on(name, body, tensors["sealed"], now)

    def _return(self, name: str, _body: Return, _tensors: NamedTensors, _now: float) -> None:
        state = self.state
        if state.finished and state.last_end is not None:
            self._rounds.handover.send_last_end(name)
        elif name in state.members and name not in state.round.active and name not in state.round.idle:
            state.returning.add(name)

    def _align(self, name: str, body: Points | Aligned, tensors: NamedTensors, now: float) -> None:
        state = self.state
        if self._aligner is None or state.number is None or not self._aligning:
            raise MessageError(f"{type(body).__name__} was not due")
        state.progress = now
        if isinstance(body, Points):
            self._outbox.extend(self._aligner.points(name, body, tensors["points"]))
            return
        try:
            self._aligner.aligned(name, body)
        except SplitsecError as error:
            raise RunFailed(error) from error
        if not self._aligning:
            self._rounds.begin_next(now)
            for client in self.settings.clients:
                self._outbox.send(client, body)

    # The beginning.

    def _begin(self, now: float) -> None:
        """Begin with the newest round that everybody can go on from."""
        parts, state = self._parts, self.state
        samples = sum(hello.samples for hello in state.members.values())
        # On from checkpoints there are as many rounds as at the beginning, whoever has come this time.
        state.samples = state.samples or samples
        state.rounds = state.rounds or self.settings.rounds(state.samples)
        if self.settings.epochs:
            set_origin(parts.tail, Origin(architecture=parts.architecture))
        known = {name: hello.rounds if hello.run == state.id else (0,) for name, hello in state.members.items()}
        number = state.number = state.first_round = parts.kept.common_round(known.values())
        state.mark = parts.kept.restore(number, parts.tail, parts.trainer, parts.rule)
        try:
            parts.kept.check_marks(state.members, run=state.id, number=number, mark=state.mark)
            parts.layout.check_members(state.members, self.settings, parts.trainer)
            state.rounds = parts.budget.begin(samples=samples, number=number, rounds=state.rounds)
        except SplitsecError as error:
            raise RunFailed(error) from error
        if parts.budget.tail is not None:
            parts.trainer.protect(parts.budget.tail, jointly=self.settings.privacy.sums_steps)
        if not parts.kept.saved or parts.budget.plan is not None:
            self._rounds.save()

        def go_on(now: float) -> None:
            for name, rounds in known.items():
                self._arrivals.welcome_from(name, rounds)
            state.round = Round(number, active=list(state.members))
            state.progress = now
            if not self._aligning:
                self._rounds.begin_next(now)

        if parts.rule.seeded or parts.layout.aligns_rows:
            self._rounds.seeds.begin(go_on)
        else:
            go_on(now)
