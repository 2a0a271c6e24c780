"""How long an encrypted prediction takes, and against what.

Engines run as separate processes on this machine and take turns within one command, so that a noisy machine is noisy
for all of them; medians are over the warm runs. Ours: server, dealer and client with CURVE; `online_ms` is from the
input to the opened result, `offline_ms` the time to get one query's randomness ready at both parties, and `total_ms`
both. Stock CrypTen (0.4.1, provider TTP, gloo over loopback) has no offline phase: its time is all online.

The floor is what the protocol cannot go below on this link: the messages that follow one another (`hops`, an exchange
being one), times half the round trip of an empty message in the same session, plus the ring arithmetic of the
linear layers done once, locally. `ratio_to_floor` is online time over the floor.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from splitsec.bench.models import BenchModel
from splitsec.cut import INPUT, SplitModel
from splitsec.errors import ConfigError, SplitsecError
from splitsec.launch.processes import PartyGroup
from splitsec.mpc.linear import LinearMask
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.parties.asking import ClientSession
from splitsec.parties.client import Client
from splitsec.parties.config import DealerConfig, ServerConfig, write_config
from splitsec.parties.events import size
from splitsec.parties.machine import settle
from splitsec.parties.names import DEALER, SERVER
from splitsec.transport import load_key_pair, load_public_keys, make_keys

START_SECONDS = 120.0
ENGINES = ("splitsec", "crypten")


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a run as the client sees it: median milliseconds, exact rounds and bytes both ways."""

    name: str
    op: str
    ms: float
    rounds: int
    bytes: int


@dataclass(frozen=True)
class Record:
    """One engine on one model and batch. Times are medians in milliseconds of the whole batch."""

    engine: str
    provider: str
    model: str
    cut: str
    batch: int
    runs: int
    threads: int
    plaintext_ms: float
    online_ms: float
    offline_ms: float
    total_ms: float
    rounds: int
    hops: int
    bytes_online_client: int
    bytes_online_server: int
    bytes_offline: int
    max_abs_error: float
    agreement: float
    floor_ms: float
    ratio_to_floor: float
    rtt_ms: float
    layers: list[LayerRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Workload:
    """What is run: a model, a cut and a batch."""

    model: BenchModel
    batch: int
    cut: str = INPUT
    weights: Path | None = None
    threads: int = 1

    def inputs(self) -> torch.Tensor:
        """The same images for every engine."""
        torch.manual_seed(1)
        return torch.randn(self.batch, *self.model.input_shape)


class Ours:
    """A running server and dealer, and a session of a client in this process."""

    def __init__(self, work: Workload, session: ClientSession, split: SplitModel) -> None:
        self._work = work
        self._session = session
        self._split = split
        self._inputs = work.inputs()
        self._online: list[float] = []
        self._offline: list[float] = []
        self._layers: list[list[float]] = []
        self._errors: list[float] = []
        self._agreements: list[float] = []

    def run(self, *, count: bool) -> None:
        """One query; `count` is False for a warm-up."""
        began = time.perf_counter()
        self._session.prepare()
        prepared = time.perf_counter()
        marks = [prepared]
        with torch.no_grad():
            activation = self._split.front(self._inputs)
        result = self._session.run(activation, on_step=lambda _step: marks.append(time.perf_counter()))
        done = time.perf_counter()
        if not count:
            return
        marks.append(done)
        with torch.no_grad():
            plain = self._split(self._inputs)
        self._offline.append((prepared - began) * 1e3)
        self._online.append((done - prepared) * 1e3)
        self._layers.append([(after - before) * 1e3 for before, after in itertools.pairwise(marks)])
        self._errors.append((result - plain).abs().max().item())
        same = result.flatten(1).argmax(1) == plain.flatten(1).argmax(1)
        self._agreements.append(same.double().mean().item())

    def record(self) -> Record:
        """Medians and exact counts of the counted runs."""
        predicted = self._session.predicted
        times = [statistics.median(column) for column in zip(*self._layers, strict=True)]
        rtt = self._session.round_trip_ms()
        floor = predicted.hops * rtt / 2 + _arithmetic_ms(predicted.plan)
        online = statistics.median(self._online)
        rounds, sent, received = self._session.last_cost
        layers = [
            LayerRecord(layer.name, layer.op, ms, layer.rounds, layer.bytes_sent + layer.bytes_received)
            for layer, ms in zip(predicted.layers, times, strict=True)
        ]
        return Record(
            engine="splitsec",
            provider="dealer",
            model=self._work.model.name,
            cut=self._work.cut,
            batch=self._work.batch,
            runs=len(self._online),
            threads=self._work.threads,
            plaintext_ms=_plain_ms(self._split, self._inputs),
            online_ms=online,
            offline_ms=statistics.median(self._offline),
            total_ms=statistics.median(map(sum, zip(self._online, self._offline, strict=True))),
            rounds=rounds,
            hops=predicted.hops,
            bytes_online_client=sent,
            bytes_online_server=received,
            bytes_offline=self._session.bytes_offline,
            max_abs_error=max(self._errors),
            agreement=statistics.fmean(self._agreements),
            floor_ms=floor,
            ratio_to_floor=online / floor,
            rtt_ms=rtt,
            layers=layers,
        )


@contextlib.contextmanager
def our_parties(work: Workload) -> Iterator[Ours]:
    """Start a server and a dealer for the workload and open a session; everything is ended on leaving."""
    model = work.model.make(work.weights)
    split = SplitModel(model, work.cut).eval()
    with (
        tempfile.TemporaryDirectory(prefix="splitsec-bench-") as name,
        PartyGroup() as group,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        make_keys(directory / "keys", [DEALER, SERVER, "client-1", "client-2"])
        save_file(
            {key: value.contiguous().clone() for key, value in split.tail.state_dict().items()}, directory / "tail"
        )
        write_config(directory / "dealer.toml", DealerConfig("tcp://127.0.0.1:*", threads=work.threads))
        group.start(DEALER, DEALER, directory / "dealer.toml")
        dealer = group.wait_listening(DEALER, START_SECONDS)
        calibration = None
        if work.model.deep:
            with torch.no_grad():
                activations = split.front(torch.randn(32, *work.model.input_shape))
            save_file({"activations": activations.contiguous().clone()}, directory / "calibration")
            calibration = "calibration"
        config = ServerConfig(
            address="tcp://127.0.0.1:*",
            dealer=dealer,
            model=work.model.source,
            cut=work.cut,
            clients=("client-1", "client-2"),
            epochs=0,
            weights="tail",
            calibration=calibration,
            stay=True,
            timeout=600.0,
            threads=work.threads,
            cpu=0,
        )
        write_config(directory / "server.toml", config)
        group.start(SERVER, SERVER, directory / "server.toml")
        server = group.wait_listening(SERVER, START_SECONDS)
        # Parties on processors of their own, as on machines of their own; this process is the client.
        processors = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, processors)
        spread = settle(work.threads, cpu=1)
        client = Client(
            split.front,
            cut=split.cut,
            keys=load_key_pair(directory / "keys", "client-1"),
            peers=load_public_keys(directory / "keys"),
            server=server,
            dealer=dealer,
            timeout=600.0,
            processors=spread,
        )
        with client, torch.no_grad():
            shape = split.front(work.inputs()).shape
            with client.session(tuple(shape), ahead=0) as session:
                yield Ours(work, session, split)


class StockCrypten:
    """Three processes of stock CrypTen; see `crypten_peer`."""

    def __init__(self, work: Workload, processors: set[int]) -> None:
        self._work = work
        self._times: list[float] = []
        self._answers: list[dict[str, float]] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = {**os.environ, "OMP_NUM_THREADS": str(work.threads)}
        command = [sys.executable, "-W", "ignore", "-m", "splitsec.bench.crypten_peer"]
        self._processes = [
            subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                [*command, str(rank), str(port), work.model.name, str(work.batch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            for rank in range(3)
        ]
        for process in self._processes:
            # This process is the client of ours and keeps to one processor; its children must not.
            os.sched_setaffinity(process.pid, processors)

    def run(self, *, count: bool) -> None:
        """One prediction; `count` is False for a warm-up."""
        answers: list[dict[str, Any]] = []
        for process in self._processes[:2]:
            assert process.stdin is not None
            process.stdin.write("run\n")
            process.stdin.flush()
        for process in self._processes[:2]:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SplitsecError(f"stock CrypTen ended while it ran {self._work.model.name}")
            answers.append(json.loads(line))
        if count:
            self._times.append(max(answer["ms"] for answer in answers))
            self._answers.append(answers[1])

    def record(self) -> Record:
        """Medians of the counted runs."""
        online = statistics.median(self._times)
        return Record(
            engine="crypten",
            provider="TTP",
            model=self._work.model.name,
            cut=INPUT,
            batch=self._work.batch,
            runs=len(self._times),
            threads=self._work.threads,
            plaintext_ms=_plain_ms(self._work.model.make(), self._work.inputs()),
            online_ms=online,
            offline_ms=0.0,
            total_ms=online,
            rounds=0,
            hops=0,
            bytes_online_client=0,
            bytes_online_server=0,
            bytes_offline=0,
            max_abs_error=max(answer["error"] for answer in self._answers),
            agreement=statistics.fmean(answer["agreement"] for answer in self._answers),
            floor_ms=0.0,
            ratio_to_floor=0.0,
            rtt_ms=0.0,
        )

    def __enter__(self) -> StockCrypten:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def measure(work: Workload, engines: Sequence[str], *, runs: int, warm_up: int = 3) -> list[Record]:
    """Run the engines in turn on one workload; raises `ConfigError` for an unknown engine."""
    unknown = sorted(set(engines) - set(ENGINES))
    if unknown:
        raise ConfigError(f"unknown engine '{unknown[0]}'; choose from {', '.join(ENGINES)}")
    processors = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        started: list[Ours | StockCrypten] = []
        for engine in engines:
            if engine == "splitsec":
                started.append(stack.enter_context(our_parties(work)))
            else:
                started.append(stack.enter_context(StockCrypten(work, processors)))
        for index in range(-warm_up, runs):
            for one in started:
                one.run(count=index >= 0)
        return [one.record() for one in started]


def table_of(records: Sequence[Record]) -> Table:
    """The records as a table; `faster` is stock CrypTen's time over ours, online and in total, where both ran."""
    table = Table(title="encrypted prediction, medians in ms", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model, batch", "engine"):
        table.add_column(column, no_wrap=True)
    for column in ("online", "offline", "total", "rounds", "bytes", "error", "faster"):
        table.add_column(column, justify="right", no_wrap=True)
    stock = {(one.model, one.batch): one for one in records if one.engine == "crypten"}
    for one in records:
        other = stock.get((one.model, one.batch)) if one.engine == "splitsec" else None
        table.add_row(
            f"{one.model}, {one.batch}",
            one.engine,
            _short(one.online_ms),
            _short(one.offline_ms) if one.offline_ms else "",
            _short(one.total_ms),
            str(one.rounds or ""),
            size(one.bytes_online_client + one.bytes_online_server) if one.rounds else "",
            f"{one.max_abs_error:.0e}",
            f"{other.online_ms / one.online_ms:.0f}x, {other.total_ms / one.total_ms:.0f}x" if other else "",
        )
    return table


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def run_bench(
    works: Sequence[Workload], engines: Sequence[str], *, runs: int, console: Console
) -> list[dict[str, Any]]:
    """Measure every workload, print one table, and return the records for a file."""
    records: list[Record] = []
    for work in works:
        console.print(f"{work.model.name}, batch {work.batch} ...", style="dim")
        records += measure(work, engines, runs=runs)
    console.print(table_of(records))
    for one in records:
        if one.floor_ms:
            console.print(
                f"{one.model}, {one.batch}: online {one.ratio_to_floor:.1f} times the floor of {one.floor_ms:.2f} ms "
                f"({one.hops} messages in a row, round trip {one.rtt_ms:.2f} ms, plus the linear layers' arithmetic)"
            )
    return [asdict(record) for record in records]


def _plain_ms(model: torch.nn.Module, inputs: torch.Tensor) -> float:
    times = []
    with torch.no_grad():
        for _ in range(20):
            began = time.perf_counter()
            model(inputs)
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def _arithmetic_ms(plan: Sequence[object]) -> float:
    total = 0.0
    for item in plan:
        if isinstance(item, LinearMask):
            stream = Stream(fresh_seed())
            x, weight = stream.ring(item.input), stream.ring(item.weight)
            times = []
            for _ in range(3):
                began = time.perf_counter()
                item.apply(x, weight)
                times.append((time.perf_counter() - began) * 1e3)
            total += min(times)
    return total
