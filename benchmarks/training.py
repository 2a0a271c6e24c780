"""How many samples a second split training learns from, against plain PyTorch on the uncut model in the same run.

Every party is a process of its own with one thread. Plain training has as many rows in a batch as all clients together,
with one thread and with all, and the faster counts. Both are measured in turns; the first round of each does not count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
from rich.table import Table
from torch.nn import functional as F

from benchmarks.command import console, run_command, words
from benchmarks.records import write_result
from splitsec.cli.common import check_writable, numbers
from splitsec.data.loaders import Loader
from splitsec.data.rows import Part
from splitsec.events import AnyEvent, RoundDone
from splitsec.local.run import LocalRun, execute, prepare
from splitsec.models.load import load_model
from splitsec.party_names import SERVER
from splitsec.settings.setting import Bounds, setting

WARM_STEPS = 10
EPOCHS = 5
LEARNING_RATE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    dataset: Annotated[str, setting("Datasets, with commas between them: digits, mnist.")] = "digits"
    data_dir: Annotated[Path, setting("For mnist: the directory above MNIST/raw.")] | None = None
    clients: Annotated[str, setting("Numbers of clients.")] = "1,3,8"
    in_flight: Annotated[str, setting("Batches on their way at once.")] = "2"
    compression: Annotated[str, setting("Compressions, see splitsec demo.")] = "none"
    turns: Annotated[int, setting("Measurements in turn.", Bounds(least=1))] = 3
    json: Annotated[Path, setting("Also write the result to this file.")] | None = None


@dataclass(frozen=True)
class TrainingRecord:
    """Samples a second, split and plain, medians of `turns` runs each; `share` is the median of the turns' quotients.

    `bytes_per_sample` travels between clients and server, both ways.
    """

    dataset: str
    clients: int
    in_flight: int
    compression: str
    split: float
    plain: float
    plain_threads: int
    share: float
    bytes_per_sample: float


def measure_training(run: LocalRun, *, samples: int = 12_000, turns: int = 3) -> TrainingRecord:
    """Train a number of epochs split and plain, `turns` times in turn.

    Args:
        run: the split training, whose first epoch is not counted.
        samples: of all clients together, at most.
    """
    split, plain, threads, size = [], [], [], 0.0
    for _ in range(turns):
        rate, size = _split(run, samples)
        split.append(rate)
        best, used = max((_plain(run, samples, count), count) for count in {1, torch.get_num_threads()})
        plain.append(best)
        threads.append(used)
    quotients = [one / other for one, other in zip(split, plain, strict=True)]
    return TrainingRecord(
        run.data,
        len(run.names),
        run.settings.batches_in_flight,
        run.compression,
        split=median(split),
        plain=median(plain),
        plain_threads=max(set(threads), key=threads.count),
        share=median(quotients),
        bytes_per_sample=size,
    )


def _split(run: LocalRun, samples: int) -> tuple[float, float]:
    """Return samples a second, and bytes a sample."""
    rounds: list[tuple[float, RoundDone]] = []

    def note(event: AnyEvent) -> None:
        if isinstance(event, RoundDone) and event.party == SERVER:
            rounds.append((time.monotonic(), event))

    with tempfile.TemporaryDirectory(prefix="splitsec-training-") as name:
        directory = Path(name)
        for part, client in zip(prepare(run, directory), run.names, strict=True):
            assert isinstance(part, Part)
            kept = slice(0, samples // len(run.names))
            few = slice(0, 1)
            short = Part(part.train_images[kept], part.train_labels[kept], part.test_images[few], part.test_labels[few])
            short.save(directory / client / "part.safetensors")
        execute(run, directory, held_out=0, on_event=note)
    seconds = rounds[-1][0] - rounds[0][0]
    learned = sum(event.samples for _, event in rounds[1:])
    first, last = rounds[0][1], rounds[-1][1]
    carried = last.bytes_sent + last.bytes_received - first.bytes_sent - first.bytes_received
    return learned / seconds, carried / learned


def _plain(run: LocalRun, samples: int, threads: int) -> float:
    """Return samples a second of plain training."""
    from splitsec.data.datasets import load_dataset

    whole = load_dataset(run.data, run.data_dir, run.seed)
    count = min(samples, len(whole.train_labels))
    batch = run.demo.batch_size * len(run.names)
    loader = Loader(whole.train_images[:count], whole.train_labels[:count], batch_size=batch, seed=0)
    model = load_model(run.model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        learned, began = 0, 0.0
        for index in range(WARM_STEPS + max(50, (run.epochs - 1) * loader.per_epoch)):
            if index == WARM_STEPS:
                learned, began = 0, time.monotonic()
            images, labels, _ = loader.batch(index)
            assert labels is not None
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            learned += len(labels)
        return learned / (time.monotonic() - began)
    finally:
        torch.set_num_threads(before)


def main(options: Options, arguments: Sequence[str]) -> None:
    """Measure every combination, and print one table."""
    check_writable(options.json)
    out = console()
    wanted = [
        (dataset, clients, in_flight, compression)
        for dataset in words(options.dataset)
        for clients in numbers(options.clients, "--clients")
        for in_flight in numbers(options.in_flight, "--in-flight")
        for compression in words(options.compression)
    ]
    records = []
    with out.status("") as status:
        for dataset, clients, in_flight, compression in wanted:
            status.update(f"{dataset}, {clients} clients, {in_flight} in flight, compression {compression}")
            run = LocalRun(
                clients=clients,
                epochs=EPOCHS,
                dataset=dataset,
                data_dir=options.data_dir,
                aggregation="none" if clients == 1 else "average",
                batches_in_flight=in_flight,
                compression=compression,
            )
            records.append(measure_training(run, turns=options.turns))
            # What took minutes is not lost if the rest is interrupted.
            write_result(options.json, records, benchmark="training", arguments=arguments)
    out.print(_table(records))


def _table(records: Sequence[TrainingRecord]) -> Table:
    table = Table(title="samples per second of training, one thread a party")
    table.add_column("dataset")
    table.add_column("compression")
    for heading in ("clients", "in flight", "split", "plain", "(threads)", "split/plain", "B/sample"):
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            record.dataset,
            record.compression,
            str(record.clients),
            str(record.in_flight),
            f"{record.split:.0f}",
            f"{record.plain:.0f}",
            str(record.plain_threads),
            f"{record.share:.2f}",
            f"{record.bytes_per_sample:.0f}",
        )
    return table


if __name__ == "__main__":
    run_command(main, Options, name="training", description="Samples a second of split training against plain PyTorch.")
