"""The ledger: what a client's data has been used for in a run, and what that has cost."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from splitsec.errors import ConfigError, MessageError, first_line
from splitsec.files import whole_file
from splitsec.privacy.accounting import epsilon_of
from splitsec.settings.privacy import Accountant

# Mechanisms, by the names that ledgers have them under.
RECORD = "DP-SGD"
CLIENT = "distributed discrete Gaussian"
NOISY = "noise on activations"
_RUN = re.compile(r"[0-9a-f]{32}\Z")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mechanism's use.

    Attributes:
        mechanism: what it is.
        covers: whom or what its epsilon protects.
        parameters: as they were set.
        noise, rate, steps: of the sampled Gaussian mechanism that it is.
        epsilon: of all its steps, at the ledger's delta; infinite for one without noise.
    """

    mechanism: str
    covers: str
    parameters: dict[str, float]
    noise: float
    rate: float
    steps: int
    epsilon: float | None


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What had been spent when a round was over; accuracy is that of this client's own batches, None if unknown."""

    round: int
    epoch: float
    steps: int
    epsilon: float
    accuracy: float | None


class Ledger(msgspec.Struct, forbid_unknown_fields=True):
    """One client's ledger of one run.

    Steps are charged before they are taken: a run that is killed and goes on has paid for what was lost.

    Attributes:
        budget: epsilon that the run may spend at `delta`; 0 for none.
        data: the name of the fingerprints of its records, see `RunHistory`; empty where none are kept.
        limit: epsilon that all runs over this data may spend at `delta`; 0 for none.
        earlier: run ids of other runs that shared a record with it when steps were last charged.
        together: epsilon at `delta` of this run and those, for a record that was in all of them.
    """

    client: str
    run: str
    budget: float
    delta: float
    accountant: Accountant
    entries: list[Entry] = msgspec.field(default_factory=list)
    points: list[Point] = msgspec.field(default_factory=list)
    data: str = ""
    limit: float = 0.0
    earlier: list[str] = msgspec.field(default_factory=list)
    together: float = 0.0

    @property
    def spent(self) -> float:
        """Return the epsilon of the mechanism that the budget is for; 0 where nothing has been spent."""
        return max((entry.epsilon or 0.0 for entry in self.entries if entry.mechanism in (RECORD, CLIENT)), default=0.0)

    def against_another_client(self) -> float | None:
        """Return the epsilon against one other client, which knows its own share of the noise and can take it off.

        None where noise does not come in shares.
        """
        for entry in self.entries:
            shares = entry.parameters.get("shares", 0)
            if shares > 1:
                history = [(entry.noise * math.sqrt((shares - 1) / shares), entry.rate, entry.steps)]
                return epsilon_of(history, delta=self.delta, accountant=self.accountant)
        return None

    def charge(
        self,
        mechanism: str,
        *,
        covers: str,
        noise: float,
        rate: float,
        steps: int,
        parameters: dict[str, float],
        accountant: Accountant | None = None,
    ) -> float:
        """Note more steps of a mechanism; return its epsilon so far.

        Args:
            accountant: another than the ledger's.
        """
        before = next((entry for entry in self.entries if entry.mechanism == mechanism), None)
        if before is not None and (before.noise, before.rate) != (noise, rate):
            raise ConfigError(f"the ledger of {self.client} has {mechanism} with other parameters")
        total = steps + (0 if before is None else before.steps)
        if noise:
            epsilon = epsilon_of([(noise, rate, total)], delta=self.delta, accountant=accountant or self.accountant)
        entry = Entry(mechanism, covers, parameters, noise, rate, total, epsilon if noise else None)
        self.entries = [*(other for other in self.entries if other.mechanism != mechanism), entry]
        return epsilon if noise else 0.0

    def steps_of(self, mechanism: str) -> int:
        """How many steps of a mechanism are noted."""
        return next((entry.steps for entry in self.entries if entry.mechanism == mechanism), 0)

    def save(self, path: Path) -> None:
        """Write it as a whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


def read_ledger(path: Path) -> Ledger:
    """Read a ledger; raises `ConfigError` for a file that is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ledger)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is not a ledger: {first_line(error)}") from None


def ledger_path(directory: Path, run: str) -> Path:
    """Where a client keeps the ledger of a run, among those of other runs.

    Raises:
        MessageError: `run`, which the server chooses, is not 32 hexadecimal digits.
    """
    if not _RUN.match(run):
        raise MessageError("the server's run is not named by 32 hexadecimal digits; no file is named by anything else")
    return directory / f"ledger-{run}.json"


def find_ledgers(place: Path) -> list[Ledger]:
    """Return the ledger of a file, or all below a directory; raises `ConfigError` if there is none."""
    if place.is_file():
        return [read_ledger(place)]
    paths = sorted(place.rglob("ledger-*.json"))
    if not paths:
        raise ConfigError(
            f"no ledger in {place}: point to the directory of a run with a privacy budget, such as the one of "
            "splitsec demo --dp-epsilon 3 --checkpoints DIR"
        )
    return [read_ledger(path) for path in paths]


def plot_ledgers(ledgers: Sequence[Ledger], path: Path) -> None:
    """Draw epsilon against accuracy over the epochs, one line a client."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    spent, exchange = figure.subplots(1, 2)
    for ledger in ledgers:
        name = f"{ledger.client} ({ledger.run[:8]})" if len({ledger.run for ledger in ledgers}) > 1 else ledger.client
        spent.plot([point.epoch for point in ledger.points], [point.epsilon for point in ledger.points], label=name)
        known = [point for point in ledger.points if point.accuracy is not None]
        exchange.plot(
            [point.epsilon for point in known],
            [100 * (point.accuracy or 0) for point in known],
            ".-",
            ms=3,
            lw=0.8,
            label=name,
        )
        if ledger.budget:
            spent.axhline(ledger.budget, color="0.5", ls="--", lw=0.8)
    spent.set_xlabel("epoch")
    spent.set_ylabel("epsilon spent (dashed: the budget)")
    exchange.set_xlabel("epsilon spent")
    exchange.set_ylabel("accuracy on the client's own batches, %")
    spent.legend(fontsize=8)
    for axis in (spent, exchange):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
