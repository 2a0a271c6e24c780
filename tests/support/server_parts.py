"""The parts of a server's run, without clients: what a unit test of one of them needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splitsec import RunSettings, SplitModel, Timeouts
from splitsec.cut.origin import origin_of
from splitsec.events import AnyEvent
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.messages import Hello
from splitsec.training.server.outbox import Outbox
from splitsec.training.server.rounds import Rounds
from splitsec.training.server.state import RunParts, RunState, make_parts
from support.parties_in_threads import CUT, hello, model

NAMES = ("a", "b", "c")


class ServerParts:
    """A run in its first round, with every client there, unless `begun` is False.

    Attributes:
        events: what has been reported.
    """

    def __init__(self, directory: Path | None = None, *, begun: bool = True, **settings: Any) -> None:
        split = SplitModel(model(), CUT)
        self.events: list[AnyEvent] = []
        self.parts: RunParts = make_parts(
            split.tail,
            cut=CUT,
            settings=RunSettings(**{"clients": NAMES, "epochs": 2, "batch_size": 4, **settings}),
            timeouts=Timeouts(),
            checkpoints=None if directory is None else Checkpoints(directory),
            seed=1,
            report=self.events.append,
        )
        self.state = RunState(id="0" * 32, rounds=2, samples=36, finished=False)
        self.outbox = Outbox()
        self.rounds = Rounds(self.parts, self.state, self.outbox)
        self.architecture = origin_of(split.tail).architecture
        if begun:
            self.state.members = {name: self.hello() for name in NAMES}
            self.state.number = 0
            self.state.round.active = list(NAMES)
            self.rounds.begin_next(0.0)

    def hello(self, **changed: Any) -> Hello:
        """Return what a client of this run says first."""
        return hello(**{"architecture": self.architecture, "shape": (6,), **changed})

    def taken(self) -> list[tuple[str, str]]:
        """Return to whom what is said, by the names of the messages, and forget it."""
        return [(outgoing.to, type(outgoing.body).__name__) for outgoing in self.outbox.take()]
