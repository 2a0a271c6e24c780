"""A run's training with virtual clients: the parties' own code in one process, messages handed over in order.

Nothing is sent, so nothing is encrypted; masks, rounds and averages are those of separate processes, and so is the
result for the same seed. Clients may be made to drop out, to see what that does to a model.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.messages import Done
from splitsec.parties.events import AnyEvent, Report, RoundDone, ignore
from splitsec.parties.learning import Learner, Out
from splitsec.parties.names import DEALER, SERVER
from splitsec.parties.rounds import Run, RunFailed
from splitsec.privacy.ledger import Ledger
from splitsec.threads import one_thread
from splitsec.training.aggregation import MaskBook
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.data import Part
from splitsec.training.messages import (
    Batch,
    BeginRun,
    Combined,
    DealerBody,
    JoinRun,
    MaskSum,
    OpenMasks,
    RunSeed,
    ServerBody,
    Upload,
)
from splitsec.training.randomness import derived_seed
from splitsec.training.schedule import Schedule, check_schedule
from splitsec.training.vertical import Columns

# What a local run adds to its seed for the server's, so that no client can make the server's first weights.
SERVER_SEED = 1_000_003
# Before its first step, when it has begun, and when its upload has arrived.
PHASES = ("before", "during", "after")
Segments: TypeAlias = Callable[[str], Sequence[nn.Module]]


@dataclass
class Simulated:
    """What a simulation came to.

    Attributes:
        segments: of each client at the end, by name.
        ledgers: of each client with a privacy budget or a guard, by name.
        rounds: the server's report of each round.
        dropped: how often a client did not finish a round, or vanished after its upload.
        seconds: of the training.
    """

    segments: dict[str, Sequence[nn.Module]] = field(repr=False)
    rounds: list[RoundDone]
    dropped: int
    seconds: float
    ledgers: dict[str, Ledger] = field(default_factory=dict, repr=False)

    @property
    def samples_per_second(self) -> float:
        return sum(one.samples for one in self.rounds) / max(self.seconds, 1e-9)


def simulate(
    tail: nn.Module,
    segments: Segments,
    parts: Mapping[str, Part | Columns],
    *,
    cut: str,
    schedule: Schedule,
    seed: int,
    drop: float = 0.0,
    checkpoints: Path | None = None,
    ledgers: Path | None = None,
    epsilon_limit: float = 0.0,
    repeatable: bool = False,
    report: Report = ignore,
) -> Simulated:
    """Run a schedule's training in this process.

    Args:
        tail: the server's segment, trained in place.
        segments: makes the segments that a client, by name, begins with: the front, and of a U the head.
        parts: each client's data, by name.
        seed: of batches, dropout and who drops out; what a client of a TOML file with this seed does.
        drop: the share of clients that drops out in each round, at the beginning, in the middle or after the upload in
            turn.
        checkpoints: a directory in which each party keeps its own.
        ledgers: a directory in which each client keeps its privacy ledger; None for that of the checkpoints.
        epsilon_limit, repeatable: of each client, as in `Client.train`.

    Raises:
        ConfigError: the schedule does not fit.
        PartyTimeoutError: fewer clients than the schedule's minimum are left in a round.
    """
    check_schedule(schedule)
    if set(parts) != set(schedule.clients):
        raise ConfigError("the parts are not those of the schedule's clients")
    if not 0 <= drop < 1:
        raise ConfigError("the share of clients that drops out must be at least 0 and below 1")
    with one_thread():
        return _Simulation(
            tail, segments, parts, cut, schedule, seed, drop, checkpoints, ledgers, epsilon_limit, repeatable, report
        ).run()


class _Simulation:
    def __init__(
        self,
        tail: nn.Module,
        segments: Segments,
        parts: Mapping[str, Part | Columns],
        cut: str,
        schedule: Schedule,
        seed: int,
        drop: float,
        checkpoints: Path | None,
        ledgers: Path | None,
        epsilon_limit: float,
        repeatable: bool,
        report: Report,
    ) -> None:
        self._make = segments
        self._parts = parts
        self._cut = cut
        self._schedule = schedule
        self._seed = seed
        self._drop = drop
        self._directory = checkpoints
        self._ledgers = checkpoints if ledgers is None else ledgers
        self._epsilon_limit = epsilon_limit
        self._repeatable = repeatable
        self._outer = report
        # One process sees everything, so a round that is repeated after a restart gives nothing away.
        self._book = MaskBook(max(2, schedule.minimum), recorded=True)
        self._to_server: deque[tuple[str, ServerBody, Sequence[torch.Tensor]]] = deque()
        self._to_clients: deque[tuple[str, ServerBody, Sequence[torch.Tensor]]] = deque()
        self._dropping: dict[str, str] = {}
        self._dropping_round = -1
        self._choice = np.random.default_rng(derived_seed("who drops out", seed))
        self._result = Simulated({}, [], 0, 0.0)
        self._run = Run(
            tail,
            cut=cut,
            schedule=schedule,
            send=lambda name, body, tensors: self._to_clients.append((name, body, tensors)),
            ask_dealer=self._ask_dealer,
            report=self._report,
            traffic=lambda: (0, 0),
            timeout=float("inf"),
            join_timeout=float("inf"),
            checkpoints=self._kept(SERVER),
            seed=derived_seed("tail", seed + SERVER_SEED),
        )
        self._clients = {name: self._client(name) for name in schedule.clients}

    def run(self) -> Simulated:
        began = time.monotonic()
        for name in self._schedule.clients:
            self._say(name, self._clients[name].begin())
        try:
            while not self._run.finished or self._to_clients or self._to_server:
                self._one_message()
        except RunFailed as failed:
            raise failed.reason from None
        self._result.seconds = time.monotonic() - began
        protections = {name: one.protection for name, one in self._clients.items()}
        self._result.ledgers = {name: one.ledger for name, one in protections.items() if one and one.ledger}
        return self._result

    def _one_message(self) -> None:
        if self._to_clients:
            name, body, tensors = self._to_clients.popleft()
            if isinstance(body, Combined) and self._vanishes(name, "after") and not self._run.finished:
                # Its process has died after the upload; a new one knows nothing and says hello.
                self._clients[name] = self._client(name)
                self._say(name, self._clients[name].begin())
            else:
                self._say(name, self._clients[name].take(body, tensors))
        elif self._to_server:
            name, body, tensors = self._to_server.popleft()
            self._choose()
            training = isinstance(body, (Batch, Upload))
            begun = training and not (isinstance(body, Batch) and body.step == 0)
            if (training and self._vanishes(name, "before")) or (begun and self._vanishes(name, "during")):
                self._run.gone(name, now=0.0)
            else:
                self._run.take(name, body, tensors, now=0.0)
        else:
            raise MessageError("the parties wait for each other")

    def _choose(self) -> None:
        """At the first message of a round, who drops out of it and when."""
        if self._run.round is None or self._run.round == self._dropping_round:
            return
        self._dropping_round = self._run.round
        names = self._schedule.clients
        chosen = self._choice.choice(len(names), round(self._drop * len(names)), replace=False)
        self._dropping = {names[int(one)]: PHASES[index % len(PHASES)] for index, one in enumerate(chosen)}

    def _vanishes(self, name: str, phase: str) -> bool:
        """Whether a client drops out now; it does so once."""
        if self._dropping.get(name) != phase:
            return False
        del self._dropping[name]
        self._result.dropped += 1
        return True

    def _report(self, event: AnyEvent) -> None:
        if isinstance(event, RoundDone):
            self._result.rounds.append(event)
        self._outer(event)

    def _client(self, name: str) -> Learner:
        segments = self._make(name)
        self._result.segments[name] = segments
        return Learner(
            segments,
            self._parts[name],
            name=name,
            cut=self._cut,
            seed=derived_seed(name, self._seed),
            repeatable=self._repeatable,
            traffic=lambda: (0, 0),
            report=self._outer,
            checkpoints=self._kept(name),
            ledgers=None if self._ledgers is None else self._ledgers / name,
            epsilon_limit=self._epsilon_limit,
        )

    def _kept(self, name: str) -> Checkpoints | None:
        return None if self._directory is None else Checkpoints(self._directory / name)

    def _say(self, name: str, out: Sequence[Out]) -> None:
        for to, body, tensors in out:
            if to == DEALER:
                assert isinstance(body, JoinRun)
                seed = self._book.seeds_for(name, start=body.start, first_round=body.round, noise=body.noise)
                pairs = self._book.pair_seeds(name, body.partners)
                self._say(name, self._clients[name].take(RunSeed(seed, pairs), []))
            else:
                self._to_server.append((name, body, tensors))  # type: ignore[arg-type]

    def _ask_dealer(self, body: DealerBody) -> tuple[DealerBody, list[torch.Tensor]]:
        if isinstance(body, BeginRun):
            self._book.begin(body.start, fresh=body.fresh)
            return Done(), []
        assert isinstance(body, OpenMasks)
        return MaskSum(body.round), [self._book.open_sum(body.round, body.participants, body.length, start=body.start)]
