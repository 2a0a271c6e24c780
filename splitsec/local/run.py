"""A whole run on this machine: fresh keys, dealt data, one process a party."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from splitsec.cut import INPUT, SplitModel, cut_names, is_u
from splitsec.cut.joined import VerticalModel
from splitsec.data.columns import Columns
from splitsec.data.datasets import DATASETS, DemoSettings, demo_settings, load_columns, load_dataset
from splitsec.data.partition import deal, split_rows
from splitsec.data.rows import Part
from splitsec.errors import ConfigError
from splitsec.events import AnyEvent
from splitsec.files import whole_file
from splitsec.local.processes import PartyGroup
from splitsec.local.simulation import SERVER_SEED
from splitsec.models.load import load_model
from splitsec.party_names import DEALER, SERVER
from splitsec.settings.checks import without_idle
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.privacy import Privacy, check_delta
from splitsec.settings.run import (
    MODEL_PARTS,
    MOST_IN_FLIGHT,
    MOST_SEED,
    RULE_TRAITS,
    RunSettings,
    Training,
    check_run_settings,
)
from splitsec.settings.setting import Bounds, check_bounds, describe, growing, setting, values_of
from splitsec.settings.toml import write_config
from splitsec.training.layouts import LAYOUTS
from splitsec.transport import make_keys

START_SECONDS = 120.0
LEARNING_RATE = 2e-3


# The dataset and the number of clients of a layout where the user names none.
DATASET: dict[str, str] = {"horizontal": "digits", "u": "digits", "vertical": "breast", MODEL_PARTS: "digits"}
CLIENTS: dict[str, int] = {"horizontal": 3, "u": 3, "vertical": 2, MODEL_PARTS: 2}
# Rows of one encrypted query, where they come as a table.
VERTICAL_BATCH = 32


_BATCH_SIZE = setting("Rows of each client in a step; what suits the dataset if left out.", Bounds(least=1))
_LEARNING_RATE = setting("Learning rate of Adam; what suits the dataset if left out.", Bounds(above=0))
_IN_FLIGHT = setting(
    "Batches of a client on their way at once; 2 if left out, 1 with vertical and with a budget.",
    Bounds(least=1, most=MOST_IN_FLIGHT),
)


@dataclass(frozen=True, kw_only=True)
class LocalRun(Training):
    """What a local run does; what is left out is what suits the layout or the dataset."""

    layout: Annotated[
        str,
        setting(
            "Clients hold rows with labels (horizontal), rows whose labels stay with them (u), columns of the same "
            "people (vertical), or parts of the model that each trains alone (model_parts)."
        ),
    ] = "horizontal"
    clients: (
        Annotated[
            int, setting("Number of clients; 3 if it is left out, 2 with vertical and model_parts.", Bounds(least=1))
        ]
        | None
    ) = None
    cut: (
        Annotated[str, setting("Where the model is cut, for a U two names; what suits the dataset if left out.")] | None
    ) = None
    dataset: (
        Annotated[str, setting("Data to train on: digits, mnist, with vertical breast or credit, or a plugin's.")]
        | None
    ) = None
    data_dir: (
        Annotated[Path, setting("For mnist the directory above MNIST/raw, for credit the one above vertical.")] | None
    ) = None
    partition: Annotated[
        str, setting("Which rows go to which client: iid, dirichlet:ALPHA, shards:LABELS or files:DIR.")
    ] = "iid"
    seed: Annotated[
        int, setting("Data, first weights and batches follow from it.", Bounds(least=0, most=MOST_SEED))
    ] = 0
    predictions: (
        Annotated[
            int,
            setting("Encrypted predictions, all clients together; at most 1000 if it is left out.", Bounds(least=0)),
        ]
        | None
    ) = None
    # What suits the dataset, if they are left out.
    batch_size: Annotated[int, _BATCH_SIZE] | None = None  # type: ignore[assignment]
    learning_rate: Annotated[float, _LEARNING_RATE] | None = None  # type: ignore[assignment]
    batches_in_flight: Annotated[int, _IN_FLIGHT] | None = None  # type: ignore[assignment]
    timeout: Annotated[float, setting("After it the whole run is given up.", Bounds(above=0), unit="seconds")] = 7200.0

    @property
    def names(self) -> list[str]:
        """Return the clients' names."""
        count = CLIENTS[self._kind] if self.clients is None else self.clients
        return [f"client-{number}" for number in range(1, count + 1)]

    @property
    def _kind(self) -> str:
        # A layout of another package is for clients with rows.
        return self.layout if self.layout in DATASET else "horizontal"

    @property
    def data(self) -> str:
        """Return the dataset's name."""
        return DATASET[self._kind] if self.dataset is None else self.dataset

    @property
    def demo(self) -> DemoSettings:
        """Return what suits the dataset in this layout."""
        return demo_settings(self.data, self._kind)

    @property
    def model(self) -> str:
        """Return the source of the model."""
        return self.demo.model

    @property
    def where(self) -> str:
        """Return the cut; empty where the layout has none."""
        return (self.cut or self.demo.cut) if self.demo.cut else ""

    @property
    def has_rows(self) -> bool:
        """Return whether clients hold rows and train one model together."""
        return self.layout not in ("vertical", MODEL_PARTS)

    @property
    def rate(self) -> float:
        """Return the learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.demo.private_learning_rate if self.privacy.by_record else LEARNING_RATE

    @property
    def settings(self) -> RunSettings:
        """Return the server's settings of the run."""
        columns = self.layout == "vertical"
        by_record = self.privacy.by_record
        usual = max(1, self.demo.private_batch_size // len(self.names)) if by_record else self.demo.batch_size
        own = {described.name: getattr(self, described.name) for described in describe(Training)}
        own |= {
            "batch_size": self.batch_size or usual,
            "learning_rate": self.rate,
            # One keeps the steps of columns those of the joined model, and noise that of the weights it is for.
            "batches_in_flight": self.batches_in_flight or (1 if columns or by_record else 2),
            "aggregation": "none" if columns else self.aggregation,
        }
        if self.privacy.sums_steps and not columns:
            own["steps_per_round"] = self.steps_per_round or 1
        return RunSettings(
            **own,
            clients=tuple(self.names),
            layout=self.layout,
            join=load_vertical(self.model).join if columns else None,
            row_order_seed=self.seed,
        )

    def prediction_counts(self, held_out: int) -> list[int]:
        """How many rows each client predicts."""
        most = held_out if self.layout == "vertical" else 1000
        total = min(held_out, most if self.predictions is None else self.predictions)
        if self.layout == "vertical":
            return [total, *(0 for _ in self.names[1:])]
        count = len(self.names)
        return [total // count + (index < total % count) for index in range(count)]


def load_vertical(source: str) -> VerticalModel:
    """Return the demo's model for columns."""
    model = load_model(source)
    assert isinstance(model, VerticalModel)
    return model


# Options that a layout has no use for.
_AVERAGES = ("aggregation", "steps_per_round", "minimum_clients", "proximal", "server_momentum")
IDLE: dict[str, tuple[str, ...]] = {
    "vertical": ("partition", *_AVERAGES),
    MODEL_PARTS: ("batches_in_flight", "decay", "compression", *_AVERAGES),
}


def check_idle(run: LocalRun) -> None:
    """Raise `ConfigError` for an option that would do nothing in the layout, or with the dataset."""
    for described, value in values_of(run):
        if described.name in IDLE.get(run.layout, ()) and value != described.default:
            option = "--" + described.name.replace("_", "-")
            raise ConfigError(f"{option} does nothing in a {run.layout} run, whose clients it is not for; leave it out")
    if run.data_dir is not None and not DATASETS.get(run.data).needs_directory:
        raise ConfigError(f"--data-dir does nothing with {run.data}, which is read from no directory; leave it out")


def check_run(run: LocalRun) -> None:
    """Raise `ConfigError` or `CutError` for settings that cannot work, before any process is started."""
    check_bounds(run)
    if run.has_rows:
        LAYOUTS.get(run.layout)
    check_idle(run)
    _check_clients(run)
    if run.epochs < 1:
        raise ConfigError("a run needs at least one epoch")
    if run.cut is not None and not run.has_rows:
        raise ConfigError(f"a {run.layout} run has no cut to choose; leave --cut out")
    if run.layout != MODEL_PARTS:
        check_run_settings(run.settings)
    elif run.privacy != Privacy():
        raise ConfigError("a part of a model is trained by its client alone: train it with Opacus, and give the result")
    if run.where:
        _check_cut(run)


def _check_clients(run: LocalRun) -> None:
    count = len(run.names)
    if count < 2 and (RULE_TRAITS.get(run.aggregation).averages or not run.has_rows):
        raise ConfigError("a run needs at least two clients: the average over one would show its parameters")
    if run.layout == "vertical" and count != 2:
        raise ConfigError("the demo's columns are those of two clients; use the API for more")
    asking = 1 if run.layout == "vertical" else count
    if run.predictions is not None and run.predictions < asking:
        raise ConfigError(f"{run.predictions} predictions are fewer than the {asking} clients that ask for them")


def _check_cut(run: LocalRun) -> None:
    if cut_names(run.where)[0] == INPUT:
        raise ConfigError("a cut at the input would train on the clients' inputs in plain; choose a later cut")
    if run.layout == "u" and not is_u(run.where):
        raise ConfigError(f"a U has two cuts, such as {run.demo.cut}; '{run.where}' is one")
    # The parties compare it with the model on their data.
    SplitModel(load_model(run.model), run.where, check=False)


def make_data(run: LocalRun) -> list[Part] | list[Columns]:
    """Each client's data; raises `ConfigError` if it is not there, or cannot be dealt."""
    check_run(run)
    if run.layout == "vertical":
        return load_columns(run.data, run.data_dir, run.seed)
    whole = load_dataset(run.data, run.data_dir, run.seed)
    if run.privacy.by_record:
        check_delta(run.privacy.delta, len(whole.train_labels))
    return deal(whole, split_rows(run.partition, whole.train_labels, len(run.names), run.seed), run.seed)


def prepare(run: LocalRun, directory: Path) -> list[Part] | list[Columns]:
    """Write each party's directory: its secret key, everybody's public keys and, for a client, its part of the data.

    A directory that an earlier run with the same settings made is used as it is, checkpoints and all; with more epochs
    the run goes on.

    Returns the clients' data, which the caller may use to judge the results; the parties read only their own file.
    """
    check_run(run)
    everyone = [DEALER, SERVER, *run.names]
    note = directory / "run.json"
    settings = {name: str(value) for name, value in asdict(run).items() if name not in ("predictions", "timeout")}
    if note.exists():
        before = json.loads(note.read_text())
        changed = sorted(name for name in settings if before.get(name) != settings[name])
        if set(changed) <= growing(run).keys() and all(float(settings[name]) > float(before[name]) for name in changed):
            _note(note, settings)
        elif changed:
            name = changed[0]
            raise ConfigError(
                f"{directory} holds another run: {name} is {before.get(name)} there and {settings[name]} here; choose "
                "another directory, or the same settings"
            )
        kind = Columns if run.layout == "vertical" else Part
        return [kind.load(directory / name / "part.safetensors") for name in run.names]  # type: ignore[return-value]
    parts = make_data(run)
    for name in everyone:
        make_keys(directory / name / "keys", [name])
    for name in everyone:
        public = (directory / name / "keys" / f"{name}.key").read_bytes()
        for other in everyone:
            (directory / other / "keys" / f"{name}.key").write_bytes(public)
    for index, name in enumerate(run.names):
        parts[index].save(directory / name / "part.safetensors")
    # Last, so that a directory that has it is complete.
    _note(note, settings)
    return parts


def _note(path: Path, settings: Mapping[str, str]) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n")


def execute(
    run: LocalRun,
    directory: Path,
    *,
    held_out: int,
    keep: bool = False,
    on_event: Callable[[AnyEvent], None] | None = None,
) -> dict[str, int]:
    """Start all parties, wait until they are done, end them; returns their process ids.

    Args:
        held_out: how many rows there are to predict.
        keep: every party writes checkpoints, and goes on from those that are there.

    Raises:
        SplitsecError: what the first failing party said. No process is left behind.
    """
    checkpoints = "checkpoints" if keep else None
    processors = len(os.sched_getaffinity(0))
    with PartyGroup() as group:
        dealing = DealerConfig(address="tcp://127.0.0.1:*", checkpoints=checkpoints, cpu=1 % processors)
        _write(directory / DEALER, dealing)
        group.start(DEALER, DEALER, directory / DEALER / "party.toml")
        dealer = group.wait_listening(DEALER, START_SECONDS)
        own = {described.name: getattr(run.settings, described.name) for described in describe(RunSettings)}
        server_config = ServerConfig(
            **own,
            address="tcp://127.0.0.1:*",
            dealer=dealer,
            model=run.model,
            cut=run.where,
            # Another number than the clients', so that the run can be repeated from one seed.
            seed=run.seed + SERVER_SEED,
            out="out",
            checkpoints=checkpoints,
            # Parts of a model come when the slowest client has trained.
            join_timeout=run.timeout if run.layout == MODEL_PARTS else 120.0,
            cpu=0,
        )
        _write(directory / SERVER, server_config)
        group.start(SERVER, SERVER, directory / SERVER / "party.toml")
        server = group.wait_listening(SERVER, START_SECONDS)
        for index, (name, count) in enumerate(zip(run.names, run.prediction_counts(held_out), strict=True)):
            # Of columns one client asks, and the others contribute.
            asks = run.layout != "vertical" or index == 0
            client_config = ClientConfig(
                name=name,
                server=server,
                dealer=dealer,
                model=run.model,
                cut=run.where,
                layout=None if run.has_rows else run.layout,  # type: ignore[arg-type]
                data="part.safetensors",
                seed=run.seed,
                # All parties are on this machine, with data of its own.
                repeatable=True,
                predictions=count if asks else None,
                batch_size=VERTICAL_BATCH if asks and run.layout == "vertical" else 1,
                epochs=run.epochs,
                train_batch_size=run.settings.batch_size,
                learning_rate=run.rate,
                out="out",
                checkpoints=checkpoints,
                # All parties share this machine's processors, so to prepare meanwhile would only take turns.
                ahead=0 if asks else 1,
                # Not the server's, as long as there are others.
                cpu=(1 + index % max(1, processors - 1)) % processors,
            )
            _write(directory / name, client_config)
            group.start("client", name, directory / name / "party.toml")
        group.wait_finished({SERVER, *run.names}, run.timeout, on_event=on_event)
        return group.pids


def held_out_rows(run: LocalRun, parts: list[Part] | list[Columns]) -> int:
    """How many rows there are to predict: of columns, those that all clients have."""
    if run.layout != "vertical":
        return sum(len(part.test_labels) for part in parts if isinstance(part, Part))
    columns = [part for part in parts if isinstance(part, Columns)]
    common = set(columns[0].ids).intersection(*(part.ids for part in columns[1:]))
    return int(len(common) * run.settings.held_out)


def _write(directory: Path, config: DealerConfig | ServerConfig | ClientConfig) -> None:
    # The layout's own settings alone: each party refuses those that would do nothing.
    write_config(directory / "party.toml", without_idle(config))
