"""Clients that come to a run at the server: first, late, after a restart, or when it is over; and that give up."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from splitsec.cut.belonging import check_belongs
from splitsec.cut.origin import origin_of
from splitsec.errors import RefusedError
from splitsec.events import Dropped, Joined
from splitsec.party_names import SERVER
from splitsec.training.messages import GreetAgain, Hello, Welcome
from splitsec.training.server.admission import check_architecture, check_hello
from splitsec.training.server.outbox import Outbox, RunFailed
from splitsec.training.server.round import Round
from splitsec.training.server.rounds import Rounds
from splitsec.training.server.state import RunParts, RunState

log = logging.getLogger(__name__)


class Arrivals:
    """Greets clients, and lets them go."""

    def __init__(self, parts: RunParts, state: RunState, outbox: Outbox, rounds: Rounds) -> None:
        self._parts = parts
        self._state = state
        self._outbox = outbox
        self._rounds = rounds

    def greet(self, name: str, hello: Hello, now: float) -> None:
        """Take a client into the run, or back into it.

        Raises:
            RefusedError: it does not belong to this run.
            MessageError: what it says of itself does not fit together.
            RunFailed: the run cannot go on.
        """
        state = self._state
        self._check(name, hello)
        if state.number is None:
            state.progress = now
        else:
            self._check_return(name, hello)
        state.members[name] = hello
        self._parts.report(Joined(SERVER, name))
        if state.number is not None:
            self._greet_again(name, hello, now)

    def give_up(self, name: str, reason: str, now: float) -> None:
        """Go on without a client that has said that it ends."""
        state = self._state
        if state.number is None:
            # It may come back until all are there.
            if state.members.pop(name, None) is not None:
                self._parts.report(Dropped(SERVER, name=name, round=1, reason=reason))
            return
        state.returning.discard(name)
        state.round.idle = [other for other in state.round.idle if other != name]
        if not state.finished and name in state.round.training:
            self._rounds.drop([name], reason, now)

    def welcome_from(self, name: str, rounds: Sequence[int]) -> None:
        """Welcome a client that can go on from `rounds`; without the round that begins, with the last values."""
        number = self._state.running
        values = None if number in rounds else self._parts.rule.last
        if number not in rounds and values is None:
            raise RunFailed(self._parts.kept.not_of_one_run(name, rounds[-1], number))
        self._welcome(name, number, values)

    def _check(self, name: str, hello: Hello) -> None:
        parts, state = self._parts, self._state
        check_hello(name, hello, cut=parts.cut, settings=parts.settings, layout=parts.layout, members=state.members)
        check_architecture(name, hello, parts.architecture)
        if hello.columns is not None and not parts.settings.epochs:
            check_belongs(name, hello.columns.origin, origin_of(parts.tail))
        if state.finished and state.number is None:
            raise RefusedError(
                "the server's run has no training (epochs = 0): clients of predictions alone have train = false, and "
                "as weights the front that belongs to the server's tail"
            )
        if hello.shape and not parts.layout.aligns_rows:
            parts.trainer.check_activation(torch.zeros(1, *hello.shape))

    def _check_return(self, name: str, hello: Hello) -> None:
        """Raise `RefusedError` for a client that cannot come (back) into the run now."""
        known = self._state.members.get(name)
        if known is not None and known.samples != hello.samples:
            raise RefusedError(f"{name} has {hello.samples} samples now and began with {known.samples}")
        self._parts.layout.check_return(finished=self._state.finished)

    def _greet_again(self, name: str, hello: Hello, now: float) -> None:
        """Greet a client that was started again, or that comes late, whatever is left of its earlier life."""
        parts, state, rounds = self._parts, self._state, self._rounds
        parts.rule.started_again(name, has_segments=hello.run == state.id and state.number in hello.rounds)
        if state.finished:
            rounds.handover.tell_unserved()
        running = not state.finished and name in state.round.training
        # Steps that a budget has counted are not taken again.
        too_few = len(state.round.active) - 1 < parts.minimum and not parts.budget.plan and not parts.rule.takes_turns
        if running and too_few and parts.kept.on_disk:
            self._begin_again(name, now)
            return
        if running:
            rounds.drop([name], "was started again", now)
        parts.steps.drop(name)
        if state.finished:
            self._welcome_at_the_end(name)
            return
        state.returning.add(name)
        self._welcome(name, state.running + 1, wait=True)

    def _begin_again(self, name: str, now: float) -> None:
        """Begin the round anew for all, from the checkpoint of its beginning, with a client that was started again."""
        state = self._state
        log.warning("%s was started again, and round %d begins anew for all", name, state.running + 1)
        others = [other for other in state.members if other != name]
        self._rounds.seeds.replace()
        self._parts.kept.look_again()
        state.members = {name: state.members[name]}
        state.number = None
        state.round, state.returning = Round(0), set()
        state.progress = now
        for other in others:
            self._outbox.send(other, GreetAgain())

    def _welcome(self, name: str, number: int, combined: torch.Tensor | None = None, *, wait: bool = False) -> None:
        state = self._state
        mark = state.mark if number >= state.rounds else ""
        settings, plan = self._parts.settings, self._parts.budget.plan
        welcome = Welcome(state.id, state.start, settings, number, state.rounds, wait, plan, mark)
        self._outbox.send(name, welcome, {"combined": combined})

    def _welcome_at_the_end(self, name: str) -> None:
        rounds = self._state.rounds
        if self._state.last_end is None:
            self._welcome(name, rounds, self._parts.rule.last)
        else:
            self._welcome(name, rounds, wait=True)
            self._rounds.handover.send_last_end(name)
