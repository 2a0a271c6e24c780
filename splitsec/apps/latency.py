"""Encrypted against plaintext latency of a model: server and dealer in processes of their own, the client here."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from splitsec.apps.workload import LayerRecord, Record, Workload, plain_ms
from splitsec.cut import SplitModel
from splitsec.events import size
from splitsec.local.prediction_service import Service, start_service
from splitsec.local.processes import PartyGroup
from splitsec.machine import settle
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.program.operations.crypten import runs_through_crypten
from splitsec.mpc.program.program import Engine, Program
from splitsec.mpc.protocols.linear import LinearMask
from splitsec.parties.client import Client
from splitsec.parties.setup import Network, Runtime
from splitsec.prediction.client.session import ClientSession
from splitsec.settings.query import Query
from splitsec.settings.timeouts import Timeouts
from splitsec.transport import load_key_pair, load_public_keys

WARM_UP = 3


def engine_name(program: Program) -> str:
    """Return what a table calls the engine that a program runs through, with its kind of comparison."""
    if runs_through_crypten(program):
        return "crypten"
    comparison = program.comparison
    return "splitsec" if comparison == "tables" else f"splitsec-{comparison}"


class Ours:
    """A running server and dealer, and a session of a client in this process."""

    def __init__(self, work: Workload, session: ClientSession, split: SplitModel, steady: float) -> None:
        self._work = work
        self._steady = steady
        self._session = session
        self._split = split
        self._inputs = work.inputs()
        self._online: list[float] = []
        self._offline: list[float] = []
        self._layers: list[list[float]] = []
        self._errors: list[float] = []
        self._agreements: list[float] = []

    def run(self, *, count: bool) -> None:
        """Ask once; `count` is False for a warm-up."""
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
        """Return medians and exact counts of the counted runs."""
        predicted = self._session.predicted
        times = [statistics.median(column) for column in zip(*self._layers, strict=True)]
        rtt = self._session.round_trip_ms(200 if self._work.link is None else 10)
        floor = predicted.hops * rtt / 2 + _arithmetic_ms(predicted.plan)
        online = statistics.median(self._online)
        rounds, sent, received = self._session.last_cost
        layers = [
            LayerRecord(layer.name, layer.op, ms, layer.rounds, layer.bytes_sent + layer.bytes_received)
            for layer, ms in zip(predicted.layers, times, strict=True)
        ]
        return Record(
            engine=engine_name(self._session.program),
            provider="dealer",
            model=self._work.model.name,
            cut=self._work.cut,
            batch=self._work.batch,
            runs=len(self._online),
            threads=self._work.threads,
            plaintext_ms=plain_ms(self._split, self._inputs),
            online_ms=online,
            offline_ms=statistics.median(self._offline),
            total_ms=statistics.median(map(sum, zip(self._online, self._offline, strict=True))),
            steady_ms=self._steady,
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
            comparison=self._session.program.comparison,
            link=self._work.link,
            layers=layers,
        )


def service_of(work: Workload, split: SplitModel) -> Service:
    """Return what the server of a workload serves."""
    calibration = None
    if work.model.deep:
        with torch.no_grad():
            calibration = split.front(torch.randn(32, *work.model.input_shape))
    return Service(work.model.source, work.cut, split.tail, calibration, work.threads)


@contextlib.contextmanager
def our_parties(
    work: Workload,
    comparison: str = "tables",
    *,
    engine: Engine = "splitsec",
    reach: Callable[[str], str] | None = None,
) -> Iterator[Ours]:
    """Start a server and a dealer for the workload and open a session; everything is ended on leaving.

    Args:
        work: what is run.
        comparison: protocol of comparisons.
        engine: whose functions layers run through.
        reach: turns an address into the one to connect to, where an emulated link lies between the parties.
    """
    model = work.model.make(work.weights)
    split = SplitModel(model, work.cut, sample=work.inputs()).eval()
    with (
        tempfile.TemporaryDirectory(prefix="splitsec-bench-") as name,
        PartyGroup() as group,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        service = service_of(work, split)
        dealer, server = start_service(
            group, directory, service, ("client-1", "client-2"), reach=reach, timeout=600.0, cpu=0
        )
        # Parties on processors of their own, as on machines of their own; this process is the client.
        processors = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, processors)
        spread = settle(work.threads, cpu=1)
        client = Client(
            split.front,
            cut=split.cut,
            network=Network(
                keys=load_key_pair(directory / "keys", "client-1"),
                peers=load_public_keys(directory / "keys"),
                server=server,
                dealer=dealer,
                reach=reach,
                timeouts=Timeouts(timeout=600.0),
            ),
            runtime=Runtime(processors=spread),
        )
        with client, torch.no_grad():
            shape = split.front(work.inputs()).shape
            query = Query(ahead=2, comparison=comparison, engine=engine)
            steady = _steady(client, split, work, query)
            with client.session(tuple(shape), replace(query, ahead=0)) as session:
                yield Ours(work, session, split, steady)


def _steady(client: Client, split: SplitModel, work: Workload, query: Query, runs: int = 20) -> float:
    """Return median milliseconds a query, all in all, while the randomness of the next two is made ready."""
    inputs, times = work.inputs(), []
    shape = split.front(inputs).shape
    with client.session(tuple(shape), query) as session:
        for _ in range(runs + WARM_UP):
            began = time.perf_counter()
            session.run(split.front(inputs))
            times.append((time.perf_counter() - began) * 1e3)
    # Until the worker has ended, the next session's would get another processor.
    time.sleep(0.5)
    return statistics.median(times[WARM_UP:])


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


def measure_latency(work: Workload, *, runs: int, engine: Engine = "splitsec") -> Record:
    """Measure a model's encrypted predictions, and the same model in plain.

    Args:
        work: what is run.
        runs: counted queries, after those that warm up.
        engine: whose functions layers run through, splitsec's or CrypTen's.
    """
    with our_parties(work, engine=engine) as ours:
        for _ in range(WARM_UP):
            ours.run(count=False)
        for _ in range(runs):
            ours.run(count=True)
        return ours.record()


def show_latency(records: Sequence[Record], console: Console) -> None:
    """Print what each batch size took, and where the time of the last one went."""
    first = records[0]
    console.print(f"{first.model}, cut at '{first.cut}', {first.threads} threads a process, medians of {first.runs}")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, pad_edge=False)
    several = len({record.engine for record in records}) > 1
    headings = ("rows", "plain ms", "online", "offline", "total", "rounds", "online", "offline", "error")
    for heading in (("engine",) if several else ()) + headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            *((record.engine,) if several else ()),
            str(record.batch),
            f"{record.plaintext_ms:.2f}",
            f"{record.online_ms:.2f}",
            f"{record.offline_ms:.2f}",
            f"{record.total_ms:.2f}",
            str(record.rounds),
            size(record.bytes_online_client + record.bytes_online_server),
            size(record.bytes_offline),
            f"{record.max_abs_error:.0e}",
        )
    console.print(table)
    last = [record for record in records if record.engine == first.engine][-1]
    layers = Table(title=f"layers, {last.batch} rows", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("layer", "operation", "online", "rounds", "bytes"):
        layers.add_column(heading, justify="left" if heading in ("layer", "operation") else "right")
    for layer in last.layers:
        layers.add_row(layer.name, layer.op, f"{layer.ms:.2f} ms", str(layer.rounds), size(layer.bytes))
    console.print(layers)
