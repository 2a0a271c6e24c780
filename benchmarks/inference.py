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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.command import run_command, words
from benchmarks.engines.base import ENGINES, Engine
from benchmarks.records import write_result
from splitsec.advisor import Link
from splitsec.apps.latency import WARM_UP
from splitsec.apps.workload import Record, Workload
from splitsec.cli.common import check_writable, numbers
from splitsec.errors import ConfigError
from splitsec.events import size
from splitsec.models.literature import find_model
from splitsec.settings.setting import Bounds, setting

# Counted runs of an engine before the next one's turn.
TURN = 5
# SPU first tries what suits it, which takes a quiet machine; so it is started before all others.
FIRST = "spu"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    model: Annotated[str, setting("Built-in names or file.py:name, with commas between them.")] = "m1,m2"
    batch: Annotated[str, setting("Batch sizes.")] = "1"
    engine: Annotated[str, setting("splitsec, splitsec-dcf, crypten, crypten-1 (with one thread), spu.")] = "splitsec"
    cut: Annotated[str, setting("Where to cut; input: all of it encrypted.")] = "input"
    input: Annotated[str, setting("Shape C,H,W of one input, for a model of yours.")] | None = None
    weights: Annotated[Path, setting("safetensors file with the model's weights.")] | None = None
    runs: Annotated[int, setting("Counted runs.", Bounds(least=1))] = 20
    threads: Annotated[int, setting("Threads a process.", Bounds(least=1))] = 1
    rtt: Annotated[float, setting("Emulate a link with this round trip, in milliseconds.", Bounds(least=0))] | None = (
        None
    )
    bandwidth: Annotated[float, setting("Of the emulated link, in megabits a second.", Bounds(above=0))] = 100.0
    json: Annotated[Path, setting("Also write the result to this file.")] | None = None


def measure(work: Workload, engines: Sequence[str], *, runs: int) -> list[Record]:
    """Run the engines in turn on one workload.

    Raises:
        ConfigError: an unknown engine, or one that runs over no emulated link.
    """
    starts = {engine: ENGINES.get(engine) for engine in engines}
    if work.link is not None and any(not engine.startswith("splitsec") for engine in engines):
        raise ConfigError("only our own engines run over an emulated link; leave out --rtt and --bandwidth")
    processors = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        started: dict[str, Engine] = {}
        for name in sorted(engines, key=lambda name: name != FIRST):
            started[name] = stack.enter_context(starts[name](work, processors))
        running = [started[name] for name in engines]
        # Engines start while others run; what has answered is there, and takes no time from the one that is measured.
        for engine in running:
            for _ in range(WARM_UP):
                engine.run(count=False)
        for done in range(0, runs, TURN):
            for turn in running:
                turn.run(count=False)
                for _ in range(min(TURN, runs - done)):
                    turn.run(count=True)
        return [turn.record() for turn in running]


def table_of(records: Sequence[Record]) -> Table:
    """Return the records as a table; `online, total faster` on a peer's row are its time over ours."""
    table = Table(title="encrypted prediction, medians in ms", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model, batch", "engine"):
        table.add_column(column, no_wrap=True)
    for column in ("online", "offline", "total", "steady", "error", "ours faster"):
        table.add_column(column, justify="right", no_wrap=True)
    ours = {(record.model, record.batch): record for record in records if record.engine == "splitsec"}
    for record in records:
        own = None if record.engine == "splitsec" else ours.get((record.model, record.batch))
        table.add_row(
            f"{record.model}, {record.batch}",
            record.engine,
            _short(record.online_ms),
            _short(record.offline_ms) if record.offline_ms else "",
            _short(record.total_ms),
            _short(record.steady_ms) if record.steady_ms else "",
            f"{record.max_abs_error:.0e}",
            f"{_times(record.online_ms / own.online_ms)}, {_times(record.total_ms / own.total_ms)}" if own else "",
        )
    return table


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 100 else f"{milliseconds:.0f}"


def main(options: Options, arguments: Sequence[str]) -> None:
    """Measure every workload, print one table, and write the records to a file."""
    check_writable(options.json)
    console = Console(emoji=False, markup=False)
    shape = None if options.input is None else numbers(options.input, "--input")
    link = None if options.rtt is None else Link(options.rtt, options.bandwidth)
    models = [find_model(name, shape) for name in words(options.model)]
    records: list[Record] = []
    for model in models:
        for batch in numbers(options.batch, "--batch"):
            console.print(f"{model.name}, batch {batch} ...", style="dim")
            work = Workload(model, batch, options.cut, options.weights, options.threads, link)
            records += measure(work, words(options.engine), runs=options.runs)
    console.print(table_of(records))
    for record in records:
        if record.floor_ms:
            console.print(_floor(record))
    write_result(options.json, records, benchmark="inference", arguments=arguments)


def _floor(record: Record) -> str:
    online = f"{size(record.bytes_online_client)} + {size(record.bytes_online_server)}"
    return (
        f"{record.model}, {record.batch}, {record.engine}: {record.rounds} rounds and {online} online, "
        f"{size(record.bytes_offline)} offline; online {record.ratio_to_floor:.1f} times the floor of "
        f"{record.floor_ms:.2f} ms ({record.hops} messages in a row, round trip {record.rtt_ms:.2f} ms, plus the "
        "linear layers' arithmetic)"
    )


if __name__ == "__main__":
    run_command(main, Options, name="inference", description="Encrypted prediction against its peers.")
