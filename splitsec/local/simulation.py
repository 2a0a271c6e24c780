"""A run's training with virtual clients: the parties' own code in one process, messages handed over in order.

Nothing is sent, so nothing is encrypted; masks, rounds and averages are those of separate processes, and so is the
result for the same seed. Clients may be made to drop out, to see what that does to a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import nn

from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.errors import ConfigError, MessageError
from splitsec.events import AnyEvent, Report, RoundDone, ignore
from splitsec.machine import one_thread
from splitsec.party_names import SERVER
from splitsec.privacy.ledger import Ledger
from splitsec.randomness import derived_seed
from splitsec.settings.run import RunSettings, check_run_settings
from splitsec.settings.timeouts import FOREVER
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.client.run import ClientRun, Participation
from splitsec.training.in_process import InProcessNetwork
from splitsec.training.messages import Batch, Combined, Upload
from splitsec.training.server.outbox import RunFailed
from splitsec.training.server.run import ServerRun
from splitsec.training.server.state import make_parts

# What a local run adds to its seed for the server's, so that no client can make the server's first weights.
SERVER_SEED = 1_000_003
# Before its first step, when it has begun, and when its upload has arrived.
PHASES = ("before", "during", "after")
Segments: TypeAlias = Callable[[str], Sequence[nn.Module]]


@dataclass
class Simulated:
    """The result of a simulation.

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
        """Return how many rows of all clients were trained on in a second."""
        return sum(done.samples for done in self.rounds) / max(self.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """How a run is simulated.

    Attributes:
        seed: of batches, dropout and who drops out; what a client of a TOML file with this seed does.
        drop: the share of clients that drops out in each round, at the beginning, in the middle or after the upload in
            turn.
        repeatable: of each client, as in `Client.train`.
        checkpoints: a directory in which each party keeps its own.
        ledgers: a directory in which each client keeps its privacy ledger; None for that of the checkpoints.
        epsilon_limit: of each client, as in `Client.train`.
    """

    seed: int
    drop: float = 0.0
    repeatable: bool = False
    checkpoints: Path | None = None
    ledgers: Path | None = None
    epsilon_limit: float = 0.0


def simulate(
    tail: nn.Module,
    segments: Segments,
    parts: Mapping[str, Part | Columns],
    *,
    cut: str,
    settings: RunSettings,
    how: SimulationSettings,
    report: Report = ignore,
) -> Simulated:
    """Run the training of a run in this process.

    Args:
        tail: the server's segment, trained in place.
        segments: makes the segments that a client, by name, begins with: the front, and of a U the head.
        parts: each client's data, by name.
        how: seeds, who drops out, and what is kept.

    Raises:
        ConfigError: the settings do not fit.
        PartyTimeoutError: fewer clients than the run's minimum are left in a round.
    """
    check_run_settings(settings)
    if set(parts) != set(settings.clients):
        raise ConfigError("the parts are not those of the run's clients")
    if not 0 <= how.drop < 1:
        raise ConfigError("the share of clients that drops out must be at least 0 and below 1")
    with one_thread():
        return _Simulation(tail, segments, parts, cut=cut, settings=settings, how=how, report=report).run()


class _Simulation:
    def __init__(
        self,
        tail: nn.Module,
        segments: Segments,
        parts: Mapping[str, Part | Columns],
        *,
        cut: str,
        settings: RunSettings,
        how: SimulationSettings,
        report: Report,
    ) -> None:
        self._make = segments
        self._parts = parts
        self._cut = cut
        self._settings = settings
        self._how = how
        self._outer = report
        self._dropping: dict[str, str] = {}
        self._dropping_round = -1
        self._choice = np.random.default_rng(derived_seed("who drops out", how.seed))
        self._result = Simulated({}, [], 0, 0.0)
        self._run = ServerRun(
            make_parts(
                tail,
                cut=cut,
                settings=settings,
                timeouts=FOREVER,
                checkpoints=self._kept(SERVER),
                seed=derived_seed("tail", how.seed + SERVER_SEED),
                report=self._report,
            )
        )
        # One process sees everything, so a round that is repeated after a restart gives nothing away.
        self._network = InProcessNetwork(self._run, MaskBook(max(2, settings.minimum_clients), recorded=True))

    def run(self) -> Simulated:
        began = time.monotonic()
        for client in [(name, self._client(name)) for name in self._settings.clients]:
            self._network.start(*client)
        try:
            while not self._run.finished or not self._network.idle:
                self._deliver_one()
        except RunFailed as failed:
            raise failed.reason from None
        self._result.seconds = time.monotonic() - began
        protections = {name: client.protection for name, client in self._network.clients.items()}
        self._result.ledgers = {
            name: protection.ledger for name, protection in protections.items() if protection and protection.ledger
        }
        return self._result

    def _deliver_one(self) -> None:
        """Deliver the next message, or let the client that it is of or for drop out."""
        network = self._network
        if (letter := network.take_for_client()) is not None:
            if isinstance(letter.body, Combined) and self._vanishes(letter.client, "after") and not self._run.finished:
                # Its process has died after the upload; a new one knows nothing and says hello.
                network.start(letter.client, self._client(letter.client))
            else:
                network.give_to_client(letter)
        elif (letter := network.take_for_server()) is not None:
            self._choose()
            training = isinstance(letter.body, (Batch, Upload))
            begun = training and not (isinstance(letter.body, Batch) and letter.body.step == 0)
            if (training and self._vanishes(letter.client, "before")) or (
                begun and self._vanishes(letter.client, "during")
            ):
                network.send_from_server(self._run.gone(letter.client, now=network.now))
            else:
                network.give_to_server(letter)
        else:
            raise MessageError("the parties wait for each other")

    def _choose(self) -> None:
        """Choose, at the first message of a round, who drops out of it and when."""
        if self._run.number is None or self._run.number == self._dropping_round:
            return
        self._dropping_round = self._run.number
        names = self._settings.clients
        chosen = self._choice.choice(len(names), round(self._how.drop * len(names)), replace=False)
        self._dropping = {names[int(client)]: PHASES[index % len(PHASES)] for index, client in enumerate(chosen)}

    def _vanishes(self, name: str, phase: str) -> bool:
        """Return whether a client drops out now; it does so once."""
        if self._dropping.get(name) != phase:
            return False
        del self._dropping[name]
        self._result.dropped += 1
        return True

    def _report(self, event: AnyEvent) -> None:
        if isinstance(event, RoundDone):
            self._result.rounds.append(event)
        self._outer(event)

    def _client(self, name: str) -> ClientRun:
        segments = self._make(name)
        self._result.segments[name] = segments
        how = self._how
        ledgers = how.checkpoints if how.ledgers is None else how.ledgers
        return ClientRun(
            segments,
            self._parts[name],
            Participation(name, self._cut, derived_seed(name, how.seed), how.repeatable, how.epsilon_limit),
            checkpoints=self._kept(name),
            ledgers=None if ledgers is None else ledgers / name,
            report=self._outer,
        )

    def _kept(self, name: str) -> Checkpoints | None:
        return None if self._how.checkpoints is None else Checkpoints(self._how.checkpoints / name)
