"""How long an encrypted prediction takes, and against what.

Engines run as separate processes on this machine and take turns of a few runs within one command, so that a noisy
machine is noisy for all of them. The first run of each turn, which finds the processors' caches full of the others'
data, is not counted for any; medians are over the counted ones. Ours: server, dealer and client with CURVE; `online_ms`
is from the input to the opened result, `offline_ms` the time to get one query's randomness ready at both parties, and
`total_ms` both, one after the other; `steady_ms` is a query's time when the next ones' randomness is made ready
meanwhile.

`splitsec-dcf` is ours with distributed comparison functions. With `--rtt` and `--bandwidth` client and server, and the
dealer and both, talk over an emulated link (`slow_link`).

Peers: `crypten` is stock CrypTen 0.4.1 as it comes (provider TTP, gloo over loopback, torch's default threads),
`crypten-1` the same with one thread a process, `spu` is SPU at its best (see `spu_peer`; needs an environment of its
own). They have no offline phase: their time is all online.

The floor is what the protocol cannot go below on this link: the longest chain of messages that each wait for the one
before (`hops`), times half the round trip of an empty message in the same session, plus the ring arithmetic of the
linear layers done once, locally. `ratio_to_floor` is online time over the floor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from splitsec.bench.ours import WARM_UP, Ours, our_parties
from splitsec.bench.peers import PeerProcesses, spu_at_its_best, stock_crypten
from splitsec.bench.workload import Record, Workload
from splitsec.errors import ConfigError
from splitsec.mpc.context import ComparisonKind
from splitsec.parties.events import size

TURN = 5
ENGINES = ("splitsec", "splitsec-dcf", "crypten", "crypten-1", "spu")
OURS = ("splitsec", "splitsec-dcf")


def measure(work: Workload, engines: Sequence[str], *, runs: int) -> list[Record]:
    """Run the engines in turn on one workload; raises `ConfigError` for an unknown engine."""
    unknown = sorted(set(engines) - set(ENGINES))
    if unknown:
        raise ConfigError(f"unknown engine '{unknown[0]}'; choose from {', '.join(ENGINES)}")
    if work.link is not None and set(engines) - set(OURS):
        raise ConfigError("only our own engines run over an emulated link; leave out --rtt and --bandwidth")
    processors = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        # SPU first tries what suits it, which takes a quiet machine.
        found: dict[str, Ours | PeerProcesses] = {}
        for engine in sorted(engines, key=ENGINES.index, reverse=True):
            match engine:
                case "splitsec" | "splitsec-dcf":
                    kind: ComparisonKind = "tables" if engine == "splitsec" else "dcf"
                    found[engine] = stack.enter_context(our_parties(work, kind))
                case "spu":
                    found[engine] = stack.enter_context(spu_at_its_best(work, processors))
                case _:
                    threads = 1 if engine == "crypten-1" else None
                    found[engine] = stack.enter_context(stock_crypten(work, processors, threads=threads, engine=engine))
        started = [found[engine] for engine in engines]
        for done in range(0, runs, TURN):
            for one in started:
                for _ in range(WARM_UP if done == 0 else 1):
                    one.run(count=False)
                for _ in range(min(TURN, runs - done)):
                    one.run(count=True)
        return [one.record() for one in started]


def table_of(records: Sequence[Record]) -> Table:
    """The records as a table; `online, total faster` on a peer's row are its time over ours."""
    table = Table(title="encrypted prediction, medians in ms", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model, batch", "engine"):
        table.add_column(column, no_wrap=True)
    for column in ("online", "offline", "total", "steady", "error", "ours faster"):
        table.add_column(column, justify="right", no_wrap=True)
    ours = {(one.model, one.batch): one for one in records if one.engine == "splitsec"}
    for one in records:
        own = None if one.engine == "splitsec" else ours.get((one.model, one.batch))
        table.add_row(
            f"{one.model}, {one.batch}",
            one.engine,
            _short(one.online_ms),
            _short(one.offline_ms) if one.offline_ms else "",
            _short(one.total_ms),
            _short(one.steady_ms) if one.steady_ms else "",
            f"{one.max_abs_error:.0e}",
            f"{_times(one.online_ms / own.online_ms)}, {_times(one.total_ms / own.total_ms)}" if own else "",
        )
    return table


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


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
                f"{one.model}, {one.batch}, {one.engine}: {one.rounds} rounds and {size(one.bytes_online_client)} + "
                f"{size(one.bytes_online_server)} online, {size(one.bytes_offline)} offline; online "
                f"{one.ratio_to_floor:.1f} times the floor of {one.floor_ms:.2f} ms ({one.hops} messages in a row, "
                f"round trip {one.rtt_ms:.2f} ms, plus the linear layers' arithmetic)"
            )
    return [asdict(record) for record in records]
