"""How many encrypted predictions a second one server and one dealer give to several clients at once.

Every party is a process of its own, as `splitsec server`, `dealer` and `client` start it; clients ask for one
prediction after the other, with the randomness of the next made ready meanwhile. What is counted is the time from a
client's first tenth of predictions to its last, so that starting up does not count.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from benchmarks.command import run_command
from benchmarks.records import write_result
from splitsec.apps.latency import service_of
from splitsec.apps.workload import Workload
from splitsec.cli.common import check_writable, numbers
from splitsec.cut import INPUT, SplitModel, origin_of
from splitsec.cut.segment_files import save_segment
from splitsec.data.rows import Part
from splitsec.errors import PartyTimeoutError
from splitsec.events import AnyEvent, Predicted
from splitsec.local.prediction_service import start_service
from splitsec.local.processes import PartyGroup
from splitsec.models.literature import BenchModel, find_model
from splitsec.settings.parties import ClientConfig
from splitsec.settings.setting import Bounds, setting
from splitsec.settings.toml import write_config

RUN_SECONDS = 900.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    model: Annotated[str, setting("A built-in name or file.py:name.")] = "m2"
    input: Annotated[str, setting("Shape C,H,W of one input, for a model of yours.")] | None = None
    sessions: Annotated[str, setting("Clients at once, with commas between the numbers.")] = "1,4"
    predictions: Annotated[int, setting("Of each client; the first tenth is not counted.", Bounds(least=20))] = 200
    json: Annotated[Path, setting("Also write the result to this file.")] | None = None


@dataclass(frozen=True)
class SessionsRecord:
    """What `sessions` clients at once got: predictions a second of all together, and of each client the median time."""

    model: str
    sessions: int
    predictions: int
    per_second: float
    ms_per_prediction: float


def measure_sessions(model: BenchModel, sessions: int, predictions: int) -> SessionsRecord:
    """Run `sessions` clients that ask for `predictions` each at the same time."""
    split = SplitModel(model.make(), INPUT).eval()
    names = [f"client-{index + 1}" for index in range(max(2, sessions))]
    with tempfile.TemporaryDirectory(prefix="splitsec-sessions-") as name, PartyGroup() as group:
        directory = Path(name)
        images = torch.randn(predictions, *model.input_shape)
        labels = torch.zeros(predictions, dtype=torch.int64)
        Part(images[:1], labels[:1], images, labels).save(directory / "part.safetensors")
        dealer, server = start_service(group, directory, service_of(Workload(model, 1), split), names)
        asking = names[:sessions]
        front, values, origin = directory / "front.safetensors", split.front.state_dict(), origin_of(split.front)
        for one in asking:
            save_segment(front, values, role="front", party=one, cut=INPUT, origin=origin)
            config = ClientConfig(
                name=one,
                server=server,
                dealer=dealer,
                model=model.source,
                cut=INPUT,
                data="part.safetensors",
                weights=front.name,
                train=False,
            )
            write_config(directory / f"{one}.toml", config)
            group.start("client", one, directory / f"{one}.toml")
        return _record(model.name, predictions, asking, group)


def _record(model: str, predictions: int, asking: Sequence[str], group: PartyGroup) -> SessionsRecord:
    first: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}

    def note(event: AnyEvent) -> None:
        if isinstance(event, Predicted) and event.done >= predictions / 10:
            first.setdefault(event.party, (time.monotonic(), event.done))
            if event.done == event.total:
                last[event.party] = time.monotonic()

    deadline = time.monotonic() + RUN_SECONDS
    while set(last) != set(asking):
        event = group.next_event(0.2)
        if event is not None:
            note(event)
        if time.monotonic() > deadline:
            missing = ", ".join(sorted(set(asking) - set(last)))
            raise PartyTimeoutError(f"{missing} had not got all predictions after {RUN_SECONDS:g} s")
    rates = []
    for one in asking:
        began, done = first[one]
        with contextlib.suppress(ZeroDivisionError):
            rates.append((predictions - done) / (last[one] - began))
    slowest = min(rates)
    return SessionsRecord(model, len(asking), predictions, sum(rates), 1e3 / slowest)


def main(options: Options, arguments: Sequence[str]) -> None:
    """Measure each number of clients, and print a line of it."""
    check_writable(options.json)
    model = find_model(options.model, None if options.input is None else numbers(options.input, "--input"))
    records = []
    for count in numbers(options.sessions, "--sessions"):
        record = measure_sessions(model, count, options.predictions)
        records.append(record)
        print(
            f"{record.model}, {count} at once: {record.per_second:.0f} predictions a second, "
            f"{record.ms_per_prediction:.1f} ms each for the slowest client"
        )
    write_result(options.json, records, benchmark="sessions", arguments=arguments)


if __name__ == "__main__":
    run_command(main, Options, name="sessions", description="Predictions a second for several clients at once.")
