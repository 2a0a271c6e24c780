"""A whole run on this machine: fresh keys, dealt data, one process a party."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import asdict

from splitsec.cut import INPUT, SplitModel, cut_names
from splitsec.errors import ConfigError
from splitsec.launch.processes import PartyGroup
from splitsec.launch.simulation import SERVER_SEED
from splitsec.models import load_model
from splitsec.parties.config import ClientConfig, DealerConfig, ServerConfig, write_config
from splitsec.parties.events import AnyEvent
from splitsec.parties.names import DEALER, SERVER
from splitsec.training.data import Part, load_dataset
from splitsec.training.partition import deal, split_rows
from splitsec.training.schedule import Combine, Schedule, check_schedule
from splitsec.transport import make_keys

START_SECONDS = 120.0
BATCH_SIZES = {"digits": 16, "mnist": 32}
MODELS = {"digits": "splitsec.models:digits_cnn", "mnist": "splitsec.models:mnist_cnn"}


@dataclass(frozen=True)
class LocalRun:
    """What a local run does.

    Attributes:
        batch_size: of each client; None for what suits the dataset.
        partition: which rows go to which client, see `split_rows`.
        combine, every, minimum, in_flight, proximal, server_momentum, compress: as in `Schedule`.
        predictions: encrypted predictions of all clients together; None for every held-out image, at most 1,000.
        timeout: seconds after which the whole run is given up.
    """

    clients: int = 3
    epochs: int = 30
    cut: str = "pool"
    dataset: str = "digits"
    data_dir: Path | None = None
    seed: int = 0
    predictions: int | None = None
    batch_size: int | None = None
    learning_rate: float = 2e-3
    partition: str = "iid"
    combine: Combine = "average"
    every: int = 0
    minimum: int = 2
    in_flight: int = 2
    proximal: float = 0.0
    server_momentum: float = 0.0
    compress: str = "none"
    timeout: float = 3600.0

    @property
    def names(self) -> list[str]:
        return [f"client-{number}" for number in range(1, self.clients + 1)]

    @property
    def model(self) -> str:
        return MODELS[self.dataset]

    @property
    def schedule(self) -> Schedule:
        shared = {name: getattr(self, name) for name in Schedule.__struct_fields__ if hasattr(self, name)}
        return Schedule(
            **{**shared, "clients": tuple(self.names), "batch_size": self.batch_size or BATCH_SIZES[self.dataset]}
        )

    def prediction_counts(self, held_out: int) -> list[int]:
        """How many images each client predicts."""
        total = min(held_out, 1000 if self.predictions is None else self.predictions)
        return [total // self.clients + (index < total % self.clients) for index in range(self.clients)]


def check_run(run: LocalRun) -> None:
    """Raise `ConfigError` or `CutError` for settings that cannot work, before any process is started."""
    if run.clients < 2:
        raise ConfigError("a run needs at least two clients: the average over one would show its parameters")
    if run.epochs < 1:
        raise ConfigError("a run needs at least one epoch")
    if run.dataset not in MODELS:
        raise ConfigError(f"unknown dataset '{run.dataset}'; choose one of: {', '.join(MODELS)}")
    check_schedule(run.schedule)
    if run.predictions is not None and run.predictions < run.clients:
        raise ConfigError(f"{run.predictions} predictions are fewer than the {run.clients} clients that ask for them")
    if cut_names(run.cut)[0] == INPUT:
        raise ConfigError("a cut at the input would train on the clients' inputs in plain; choose a later cut")
    SplitModel(load_model(run.model), run.cut)


def prepare(run: LocalRun, directory: Path) -> list[Part]:
    """Write each party's directory: its secret key, everybody's public keys and, for a client, its part of the data.

    Returns the parts, which the caller may use to judge the results; the parties read only their own file.
    """
    check_run(run)
    whole = load_dataset(run.dataset, run.data_dir, run.seed)
    parts = deal(whole, split_rows(run.partition, whole.train_labels, run.clients, run.seed), run.seed)
    everyone = [DEALER, SERVER, *run.names]
    for name in everyone:
        make_keys(directory / name / "keys", [name])
    for name in everyone:
        public = (directory / name / "keys" / f"{name}.key").read_bytes()
        for other in everyone:
            (directory / other / "keys" / f"{name}.key").write_bytes(public)
    for name, part in zip(run.names, parts, strict=True):
        part.save(directory / name / "part.safetensors")
    return parts


def execute(
    run: LocalRun, directory: Path, *, held_out: int, on_event: Callable[[AnyEvent], None] | None = None
) -> dict[str, int]:
    """Start all parties, wait until they are done, end them; returns their process ids.

    Raises:
        SplitsecError: what the first failing party said. No process is left behind.
    """
    with PartyGroup() as group:
        _write(directory / DEALER, DealerConfig(address="tcp://127.0.0.1:*", cpu=1))
        group.start(DEALER, DEALER, directory / DEALER / "party.toml")
        dealer = group.wait_listening(DEALER, START_SECONDS)
        server_config = ServerConfig(
            address="tcp://127.0.0.1:*",
            dealer=dealer,
            model=run.model,
            cut=run.cut,
            **{name: value for name, value in asdict(run.schedule).items() if name in ServerConfig.__struct_fields__},
            # Another number than the clients', so that the run can be repeated from one seed.
            seed=run.seed + SERVER_SEED,
            out="out",
            cpu=0,
        )
        _write(directory / SERVER, server_config)
        group.start(SERVER, SERVER, directory / SERVER / "party.toml")
        server = group.wait_listening(SERVER, START_SECONDS)
        for index, (name, count) in enumerate(zip(run.names, run.prediction_counts(held_out), strict=True)):
            client_config = ClientConfig(
                name=name,
                server=server,
                dealer=dealer,
                model=run.model,
                cut=run.cut,
                data="part.safetensors",
                seed=run.seed,
                predictions=count,
                out="out",
                # All parties share this machine's processors, so to prepare meanwhile would only take turns.
                ahead=0,
                cpu=index + 1,
            )
            _write(directory / name, client_config)
            group.start("client", name, directory / name / "party.toml")
        group.wait_finished({SERVER, *run.names}, run.timeout, on_event=on_event)
        return group.pids


def _write(directory: Path, config: DealerConfig | ServerConfig | ClientConfig) -> None:
    write_config(directory / "party.toml", config)
