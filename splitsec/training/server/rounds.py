"""Round after round at the server: who uploads, who is dropped, how a round ends, and what clients hear of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from splitsec.cut.origin import Origin, set_origin
from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError, RefusedError, SplitsecError
from splitsec.events import Dropped, RoundDone
from splitsec.mpc.ring import check_range
from splitsec.party_names import SERVER
from splitsec.training.messages import Combined, Missed
from splitsec.training.server.checkpoint import mark_of
from splitsec.training.server.handover import Handover
from splitsec.training.server.outbox import Outbox, RunFailed
from splitsec.training.server.round import Round
from splitsec.training.server.seeds import RunSeeds, SumRequest
from splitsec.training.server.state import RunParts, RunState
from splitsec.training.step import set_rate
from splitsec.transport import NamedTensors, expect_shape

log = logging.getLogger(__name__)


class Rounds:
    """Runs the rounds of a run, from `begin_next` on.

    Attributes:
        handover: of ends of rounds to clients.
        seeds: of the masks under which clients upload.
    """

    def __init__(self, parts: RunParts, state: RunState, outbox: Outbox) -> None:
        self._parts = parts
        self._state = state
        self._outbox = outbox
        self.handover = Handover(parts.rule, state, outbox)
        self.seeds = RunSeeds(parts, state, outbox)

    def begin_next(self, now: float) -> None:
        """Begin the round that is due, with those who are there, or finish the run after the last one.

        Raises:
            RunFailed: too few clients are there.
        """
        parts, state = self._parts, self._state
        number = state.running
        if number >= state.rounds:
            self._finish()
            return
        there = [name for name in parts.settings.clients if name in state.round.active or name in state.returning]
        state.returning = set()
        try:
            active = parts.rule.trainers(number, there)
        except SplitsecError as error:
            raise RunFailed(error) from error
        state.round = Round(number, active, [name for name in there if name not in active], now)
        set_rate(parts.trainer.optimizer, parts.settings.rate(number, state.rounds))
        samples = {name: state.members[name].samples for name in active}
        parts.steps.begin(samples)
        parts.trainer.begin_round(samples)
        parts.trainer.expected = parts.budget.expected(samples)
        state.progress = now
        if len(active) < parts.minimum:
            raise RunFailed(PartyTimeoutError(self._too_few(active)))
        if not there:
            raise RunFailed(PartyTimeoutError("no client is left"))
        if not active:
            self._end(now)

    def takes(self, name: str, number: int) -> bool:
        """Return whether a message belongs to the current round. A late sender is told so; that is not an error.

        Raises:
            RefusedError: no training is running, or the client has not joined it.
            MessageError: the round is not running yet.
        """
        state = self._state
        if state.number is None or (state.finished and state.last_end is None):
            raise RefusedError("no training is running")
        if number > state.number or (state.finished and number == state.number):
            raise MessageError(f"round {number} is not running; the run is in round {state.number}")
        current = state.round
        if name in current.active and number == state.number and not state.finished:
            return True
        if name not in state.members:
            raise RefusedError(f"{name} has not joined the run")
        if state.finished or (name not in current.active and name not in current.idle):
            log.info("%s is late for round %d", name, number + 1)
            self._outbox.send(name, Missed(number))
        return False

    def add_upload(self, name: str, tensors: NamedTensors, now: float) -> None:
        """Take a client's upload, and end the round with the last one.

        Raises:
            MessageError: it was not due, or is of another form; nothing has changed.
            RunFailed: the run cannot go on.
        """
        parts, state, current = self._parts, self._state, self._state.round
        if name in current.uploaded:
            raise MessageError(f"{name} has sent its part and must wait for the others")
        if parts.steps.owes(name):
            raise MessageError(f"{name} has a step that is not finished")
        norms: torch.Tensor | None = tensors.get("row_norms")
        if parts.rule.takes_norms != (norms is not None):
            raise MessageError(f"Upload: row_norms {'is missing' if norms is None else 'was not due'}")
        if norms is not None:
            expect_shape(norms, (len(parts.trainer.norms.get(name, ())),), what="Upload: row_norms")
            check_range(norms, limit=float("inf"), what=f"a norm of {name}")
            current.norms[name] = norms
        vector = parts.rule.add_upload(
            name,
            tensors["masked"],
            length=state.members[name].values + parts.layout.figures,
            round_number=current.number,
            rounds=state.rounds,
        )
        state.progress = now
        current.uploaded.add(name)
        if vector is not None:
            current.vectors[name] = vector
        self._end_if_complete(now)

    def drop(self, names: Sequence[str], why: str, now: float) -> None:
        """Go on without clients, which are told so.

        Raises:
            RunFailed: too few are left.
        """
        if not names:
            return
        number = self._state.round.number
        self._state.round.drop(names)
        for name in names:
            self._parts.steps.drop(name)
            self._parts.report(Dropped(SERVER, name=name, round=number + 1, reason=why))
            # If it is still there, it says so.
            self._outbox.send(name, Missed(number))
        self._state.progress = now
        self._check_enough(PartyTimeoutError, f"{', '.join(names)} {why}")
        self._end_if_complete(now)

    def _leave_out(self, names: Sequence[str], now: float) -> None:
        """End the round without the uploads of clients that have no seed of it at the dealer, and tell them why."""
        number = self._state.round.number
        why = f"uploaded without a seed from the dealer for round {number + 1}"
        error = RandomnessError(f"{', '.join(names)} {why}; join the run at the dealer first")
        log.warning("%s", error)
        self._state.round.drop(names)
        for name in names:
            self._parts.report(Dropped(SERVER, name=name, round=number + 1, reason=why))
            self._outbox.refuse(name, error)
        self._check_enough(RandomnessError, str(error))
        self._end_if_complete(now)

    def _check_enough(self, error: type[SplitsecError], why: str) -> None:
        active = self._state.round.active
        if len(active) < self._parts.minimum:
            raise RunFailed(error(f"{why}; {self._too_few(active)}"))

    def _too_few(self, names: Sequence[str]) -> str:
        left = f"only {', '.join(names)} is left" if len(names) == 1 else f"{len(names)} clients are left"
        return f"{left}, and the minimum is {self._parts.minimum}"

    def _end_if_complete(self, now: float) -> None:
        if self._state.round.complete:
            self._end(now)

    def _end(self, now: float) -> None:
        """Combine the uploads, with the sum of their masks where they are masked, and close the round."""
        parts, current = self._parts, self._state.round
        if not parts.rule.masked:
            self._close([], (), now)
            return
        # In the run's order, so that who was faster does not decide about rounding.
        uploads = {name: current.vectors[name] for name in parts.settings.clients if name in current.vectors}
        names, length = tuple(uploads), len(next(iter(uploads.values())))

        self.seeds.open_sum(SumRequest(current.number, names, length, partial(self._combine, uploads), self._leave_out))

    def _combine(self, uploads: Mapping[str, torch.Tensor], mask_sum: torch.Tensor, now: float) -> None:
        parts, state = self._parts, self._state
        combined = parts.rule.combine(
            uploads,
            mask_sum,
            state.members,
            learning_rate=parts.settings.rate(state.running, state.rounds),
            expected=sum(parts.trainer.expected.get(name, 0.0) for name in uploads),
        )
        self._close([combined], tuple(uploads), now)

    def _close(self, combined: list[torch.Tensor], names: Sequence[str], now: float) -> None:
        """Send all clients the end of the round, and begin the next.

        Args:
            combined: what the clients' uploads were combined to, if anything.
            names: the clients whose uploads are in it.
        """
        parts, state, current = self._parts, self._state, self._state.round
        parts.trainer.end_round({name: current.norms.get(name) for name in names})
        figures = combined[0][-parts.layout.figures :].tolist() if combined and parts.layout.figures else None
        loss, accuracy = figures or (parts.steps.book.loss, parts.steps.book.accuracy)
        if parts.rule.masked:
            self.seeds.note_opened(names)
        state.number = state.running + 1
        parts.budget.end_round()
        if parts.kept.on_disk or state.number >= state.rounds:
            state.mark = mark_of(parts.tail, combined)
        self.save()
        there = state.present
        # What others lost on their batches is beyond any budget.
        told = (0.0, 0.0) if parts.budget.plan is not None else (loss, accuracy)
        dropped = tuple(current.dropped)
        state.last_end = Combined(current.number, *told, dropped=dropped, mark=state.mark)
        self.handover.begin(there)
        for name in there:
            self.handover.send_end(name, state.last_end)
        parts.report(
            RoundDone(
                SERVER,
                round=state.number,
                rounds=state.rounds,
                loss=loss,
                accuracy=accuracy,
                bytes_sent=0,
                bytes_received=0,
                samples=parts.steps.samples,
                dropped=dropped,
            )
        )
        current.active += current.idle
        self.begin_next(now)

    def _finish(self) -> None:
        parts, state = self._parts, self._state
        state.finished = True
        parts.trainer.close()
        if parts.settings.epochs:
            set_origin(parts.tail, Origin(state.mark, parts.architecture, state.id, state.rounds))
        self.handover.tell_unserved()

    def save(self) -> None:
        """Write the checkpoint of the round that begins; raises `RunFailed` where it cannot be written."""
        try:
            self._parts.save(self._state)
        except SplitsecError as error:
            raise RunFailed(error) from error
