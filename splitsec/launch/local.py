"""A whole run on this machine: fresh keys, dealt data, one process a party."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from splitsec.cut import INPUT, SplitModel, cut_names, is_u
from splitsec.errors import ConfigError
from splitsec.files import whole_file
from splitsec.launch.processes import PartyGroup
from splitsec.launch.simulation import SERVER_SEED
from splitsec.models import load_model
from splitsec.parties.config import ClientConfig, DealerConfig, ServerConfig, Topology, write_config
from splitsec.parties.events import AnyEvent
from splitsec.parties.names import DEALER, SERVER
from splitsec.parties.settings import without_idle
from splitsec.privacy.rules import Accountant, Privacy, Unit, check_delta, check_epsilon
from splitsec.training.compression import check_compression
from splitsec.training.data import Part, load_dataset
from splitsec.training.partition import deal, split_rows
from splitsec.training.schedule import Combine, Schedule, check_schedule
from splitsec.training.vertical import Columns, VerticalModel, load_columns
from splitsec.transport import make_keys

START_SECONDS = 120.0
Layout: TypeAlias = Literal["horizontal", "u", "vertical", "halves"]
U_CUT = "pool,fc2"
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class DemoData:
    """A dataset of the demo: the model that it trains in a layout, the batch size of each client, and with a privacy
    budget the samples of a step that all clients have together on average, and the learning rate."""

    model: str
    batch_size: int
    private_batch: int = 256
    private_rate: float = 2e-3


DATA: dict[Layout, dict[str, DemoData]] = {
    "horizontal": {
        "digits": DemoData("splitsec.models:digits_cnn", 16, private_batch=128, private_rate=8e-3),
        "mnist": DemoData("splitsec.models:mnist_cnn", 32, private_batch=600, private_rate=4e-3),
    },
    "vertical": {
        "breast": DemoData("splitsec.models:breast_columns", 32),
        "credit": DemoData("splitsec.models:credit_columns", 64),
    },
    "halves": {
        "digits": DemoData("splitsec.models:digits_half", 16),
        "mnist": DemoData("splitsec.models:mnist_half", 32),
    },
}
DATA["u"] = DATA["horizontal"]
# Clients of a layout where the user names no number.
CLIENTS: dict[Layout, int] = {"horizontal": 3, "u": 3, "vertical": 2, "halves": 2}
# Rows of one encrypted query, where they come as a table.
VERTICAL_BATCH = 32


@dataclass(frozen=True)
class LocalRun:
    """What a local run does; with None, what suits the layout or the dataset.

    Attributes:
        topology: `horizontal` and `u` for clients with rows (labels stay with them in a U), `vertical` for columns,
            `halves` for parts of a model.
        partition: which rows go to which client, see `split_rows`.
        combine, every, minimum, in_flight, proximal, server_momentum, decay, compress: as in `Schedule`.
        dp_epsilon, dp_delta, dp_unit, dp_clip, dp_accountant, dp_local: as in `Privacy`, without the `dp`.
        activation_clip, activation_noise, nopeek: as there.
        batch_size: of each client.
        predictions: encrypted predictions of all clients together; at most 1,000 if None, but for columns all.
        timeout: seconds after which the whole run is given up.
    """

    clients: int | None = None
    epochs: int = 30
    topology: Layout = "horizontal"
    cut: str | None = None
    dataset: str | None = None
    data_dir: Path | None = None
    seed: int = 0
    predictions: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    partition: str = "iid"
    combine: Combine = "average"
    every: int = 0
    minimum: int = 2
    in_flight: int | None = None
    proximal: float = 0.0
    server_momentum: float = 0.0
    decay: bool = False
    compress: str = "none"
    dp_epsilon: float | None = None
    dp_delta: float = 1e-5
    dp_unit: Unit = "record"
    dp_clip: float = 1.0
    dp_accountant: Accountant = "prv"
    dp_local: bool = False
    activation_clip: float = 0.0
    activation_noise: float = 0.0
    nopeek: float = 0.0
    timeout: float = 7200.0

    @property
    def names(self) -> list[str]:
        count = CLIENTS[self.topology] if self.clients is None else self.clients
        return [f"client-{number}" for number in range(1, count + 1)]

    @property
    def data(self) -> str:
        """The dataset's name."""
        return next(iter(DATA[self.topology])) if self.dataset is None else self.dataset

    @property
    def model(self) -> str:
        return DATA[self.topology][self.data].model

    @property
    def where(self) -> str:
        """The cut; empty where the layout has none."""
        if self.topology in ("vertical", "halves"):
            return ""
        return self.cut or (U_CUT if self.topology == "u" else "pool")

    @property
    def kind(self) -> Topology:
        """The layout as the parties' settings have it."""
        return "horizontal" if self.topology == "u" else self.topology

    @property
    def rate(self) -> float:
        """The learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return DATA[self.topology][self.data].private_rate if self.privacy.by_record else LEARNING_RATE

    @property
    def privacy(self) -> Privacy:
        """What the run promises."""
        return Privacy(
            epsilon=self.dp_epsilon or 0.0,
            delta=self.dp_delta,
            unit=self.dp_unit,
            clip=self.dp_clip,
            accountant=self.dp_accountant,
            local=self.dp_local,
            activation_clip=self.activation_clip,
            activation_noise=self.activation_noise,
            nopeek=self.nopeek,
        )

    @property
    def schedule(self) -> Schedule:
        """The server's schedule for clients with rows or columns."""
        columns = self.topology == "vertical"
        data = DATA[self.topology][self.data]
        by_record = self.privacy.by_record
        usual = max(1, data.private_batch // len(self.names)) if by_record else data.batch_size
        return Schedule(
            clients=tuple(self.names),
            epochs=self.epochs,
            batch_size=self.batch_size or usual,
            learning_rate=self.rate,
            combine="none" if columns else self.combine,
            every=self.every or int(self.privacy.sums_steps and not columns),
            minimum=self.minimum,
            # One keeps the steps of columns those of the joined model, and noise that of the weights it is for.
            in_flight=self.in_flight or (1 if columns or by_record else 2),
            proximal=self.proximal,
            server_momentum=self.server_momentum,
            decay=self.decay,
            compress=self.compress,
            join=load_vertical(self.model).join if columns else None,
            order=self.seed,
            privacy=self.privacy,
        )

    def prediction_counts(self, held_out: int) -> list[int]:
        """How many rows each client predicts."""
        most = held_out if self.topology == "vertical" else 1000
        total = min(held_out, most if self.predictions is None else self.predictions)
        if self.topology == "vertical":
            return [total, *(0 for _ in self.names[1:])]
        count = len(self.names)
        return [total // count + (index < total % count) for index in range(count)]


def load_vertical(source: str) -> VerticalModel:
    """The demo's model for columns."""
    model = load_model(source)
    assert isinstance(model, VerticalModel)
    return model


# Options that a layout has no use for.
_AVERAGES = ("combine", "every", "minimum", "proximal", "server_momentum")
IDLE: dict[Layout, tuple[str, ...]] = {
    "horizontal": (),
    "u": (),
    "vertical": ("partition", *_AVERAGES),
    "halves": ("in_flight", "decay", "compress", *_AVERAGES),
}


def check_idle(run: LocalRun) -> None:
    """Raise `ConfigError` for an option that would do nothing in the layout, or with the dataset."""
    defaults = {one.name: one.default for one in fields(run)}
    for name in IDLE[run.topology]:
        if getattr(run, name) != defaults[name]:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} does nothing in a {run.topology} run, whose clients it is not for; leave it out"
            )
    if run.data_dir is not None and run.data not in ("mnist", "credit"):
        raise ConfigError(f"--data-dir does nothing with {run.data}, which comes with scikit-learn; leave it out")


def check_run(run: LocalRun) -> None:
    """Raise `ConfigError` or `CutError` for settings that cannot work, before any process is started."""
    check_idle(run)
    known = DATA[run.topology]
    if run.data not in known:
        raise ConfigError(f"a {run.topology} run has no dataset '{run.data}'; choose one of: {', '.join(known)}")
    count = len(run.names)
    if count < 2 and (run.combine == "average" or run.kind != "horizontal"):
        raise ConfigError("a run needs at least two clients: the average over one would show its parameters")
    if run.topology == "vertical" and count != 2:
        raise ConfigError("the demo's columns are those of two clients; use the API for more")
    if run.dp_epsilon is not None:
        check_epsilon(run.dp_epsilon)
    if run.epochs < 1:
        raise ConfigError("a run needs at least one epoch")
    if run.cut is not None and run.topology in ("vertical", "halves"):
        raise ConfigError(f"a {run.topology} run has no cut to choose; leave --cut out")
    if run.topology == "halves":
        check_compression(run.compress)
        _no_privacy_of_halves(run)
    else:
        check_schedule(run.schedule)
    asking = 1 if run.topology == "vertical" else count
    if run.predictions is not None and run.predictions < asking:
        raise ConfigError(f"{run.predictions} predictions are fewer than the {asking} clients that ask for them")
    if not run.where:
        return
    if cut_names(run.where)[0] == INPUT:
        raise ConfigError("a cut at the input would train on the clients' inputs in plain; choose a later cut")
    if (run.topology == "u") != is_u(run.where) and run.topology == "u":
        raise ConfigError(f"a U has two cuts, such as {U_CUT}; '{run.where}' is one")
    # The parties compare it with the model on their data.
    SplitModel(load_model(run.model), run.where, check=False)


def _no_privacy_of_halves(run: LocalRun) -> None:
    if run.privacy != Privacy(delta=run.dp_delta):
        raise ConfigError("a part of a model is trained by its client alone: train it with Opacus, and give the result")


def make_data(run: LocalRun) -> list[Part] | list[Columns]:
    """Each client's data; raises `ConfigError` if it is not there, or cannot be dealt."""
    check_run(run)
    if run.topology == "vertical":
        return load_columns(run.data, run.data_dir, run.seed)
    whole = load_dataset(run.data, run.data_dir, run.seed)
    if run.privacy.by_record:
        check_delta(run.dp_delta, len(whole.train_labels))
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
        if changed == ["epochs"] and run.epochs > int(before["epochs"]):
            _note(note, settings)
        elif changed:
            name = changed[0]
            raise ConfigError(
                f"{directory} holds another run: {name} is {before.get(name)} there and {settings[name]} here; choose "
                "another directory, or the same settings"
            )
        kind = Columns if run.topology == "vertical" else Part
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
        settings = {
            name: value
            for name, value in msgspec.structs.asdict(run.schedule).items()
            if name in ServerConfig.__struct_fields__
        }
        server_config = ServerConfig(
            **settings,
            address="tcp://127.0.0.1:*",
            dealer=dealer,
            model=run.model,
            cut=run.where,
            topology=run.kind,
            # Another number than the clients', so that the run can be repeated from one seed.
            seed=run.seed + SERVER_SEED,
            out="out",
            checkpoints=checkpoints,
            # Parts of a model come when the slowest client has trained.
            join_timeout=run.timeout if run.topology == "halves" else 120.0,
            cpu=0,
        )
        _write(directory / SERVER, server_config)
        group.start(SERVER, SERVER, directory / SERVER / "party.toml")
        server = group.wait_listening(SERVER, START_SECONDS)
        for index, (name, count) in enumerate(zip(run.names, run.prediction_counts(held_out), strict=True)):
            # Of columns one client asks, and the others contribute.
            asks = run.topology != "vertical" or index == 0
            client_config = ClientConfig(
                name=name,
                server=server,
                dealer=dealer,
                model=run.model,
                cut=run.where,
                topology=run.kind,
                data="part.safetensors",
                seed=run.seed,
                # All parties are on this machine, with data of its own.
                repeatable=True,
                predictions=count if asks else None,
                batch_size=VERTICAL_BATCH if asks and run.topology == "vertical" else 1,
                epochs=run.epochs,
                train_batch_size=run.schedule.batch_size,
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
    """How many rows there are to predict: of columns, so many of those that all clients have."""
    if run.topology != "vertical":
        return sum(len(part.test_labels) for part in parts if isinstance(part, Part))
    columns = [part for part in parts if isinstance(part, Columns)]
    common = set(columns[0].ids).intersection(*(part.ids for part in columns[1:]))
    return int(len(common) * run.schedule.held_out)


def _write(directory: Path, config: DealerConfig | ServerConfig | ClientConfig) -> None:
    # The layout's own settings alone: each party refuses those that would do nothing.
    write_config(directory / "party.toml", without_idle(config))
