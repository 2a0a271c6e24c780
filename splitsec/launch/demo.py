"""The demo: a local run watched with progress bars, then judged against the same model in plain."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from safetensors import safe_open

from splitsec.cut import SplitModel, is_u
from splitsec.launch.local import LocalRun, execute, prepare
from splitsec.models import load_model
from splitsec.parties.events import AnyEvent, Predicted, RoundDone, size
from splitsec.parties.names import SERVER
from splitsec.threads import one_thread
from splitsec.training.data import Part


@dataclass(frozen=True)
class DemoResult:
    """The demo's figures: times in milliseconds, bytes of one prediction both ways, `seconds` of the whole demo."""

    clients: int
    dataset: str
    epochs: int
    cut: str
    seed: int
    accuracy_plain: float
    accuracy_encrypted: float
    agreement: float
    max_abs_error: float
    encrypted_predictions: int
    plain_ms_median: float
    online_ms_median: float
    offline_ms_median: float
    total_ms_median: float
    rounds: int
    bytes_online: int
    bytes_offline: int
    bytes_training: int
    seconds: float


def run_demo(run: LocalRun, console: Console) -> DemoResult:
    """Run the demo and print its table; every process and file that it made is gone afterwards."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="splitsec-") as name:
        directory = Path(name)
        parts = prepare(run, directory)
        held_out = sum(len(part.test_labels) for part in parts)
        with _Watch(run, console) as watch:
            execute(run, directory, held_out=held_out, on_event=watch.show)
        result = _judge(run, directory, parts, watch.bytes_training, began)
    console.print(_table(result))
    console.print(_who_saw_what(run.cut))
    return result


class _Watch:
    """Progress bars: one for the server's epochs, one a client with its link's traffic and its predictions."""

    def __init__(self, run: LocalRun, console: Console) -> None:
        self.bytes_training = 0
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=8)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            console=console,
        )
        self._run = run
        self._epochs: dict[str, TaskID] = {}
        self._predicting: dict[str, TaskID] = {}

    def __enter__(self) -> _Watch:
        self._progress.start()
        for name in [SERVER, *self._run.names]:
            note = "epochs: waiting for all parties"
            self._epochs[name] = self._progress.add_task(name, total=self._run.epochs, note=note)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._progress.stop()

    def show(self, event: AnyEvent) -> None:
        if isinstance(event, RoundDone) and event.party in self._epochs:
            link = f"{size(event.bytes_sent)} sent, {size(event.bytes_received)} received"
            if event.party == SERVER:
                self.bytes_training = event.bytes_sent + event.bytes_received
                note = f"loss {event.loss:.3f}  accuracy {event.accuracy:.1%}"
            else:
                note = link
            self._progress.update(self._epochs[event.party], completed=event.round, note=note)
        elif isinstance(event, Predicted):
            if event.party not in self._predicting:
                self._predicting[event.party] = self._progress.add_task(
                    event.party, total=event.total, note="encrypted predictions"
                )
            self._progress.update(self._predicting[event.party], completed=event.done)


def _judge(run: LocalRun, directory: Path, parts: list[Part], bytes_training: int, began: float) -> DemoResult:
    # Only the demo may do this: it put both segments and all held-out images together to have something to compare.
    split = SplitModel(load_model(run.model), run.cut)
    with safe_open(directory / run.names[0] / "out" / "front.safetensors", "pt") as file:
        front = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    with safe_open(directory / SERVER / "out" / "tail.safetensors", "pt") as file:
        tail = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    split.load_whole_state_dict({**front, **tail})
    split.eval()
    encrypted, images, labels = [], [], []
    online, offline = [], []
    cost: dict[str, int] = {}
    for name, part in zip(run.names, parts, strict=True):
        with safe_open(directory / name / "out" / "predictions.safetensors", "pt") as file:
            logits, found = file.get_tensor("logits"), json.loads(file.metadata()["json"])
        encrypted.append(logits)
        images.append(part.test_images[: len(logits)])
        labels.append(part.test_labels[: len(logits)])
        online += found["online_ms"]
        offline += found["offline_ms"]
        cost = found
    opened, pictures, truth = torch.cat(encrypted), torch.cat(images), torch.cat(labels)
    plain_ms = []
    with torch.no_grad(), one_thread():
        for picture in pictures[:200]:
            start = time.perf_counter()
            split(picture[None])
            plain_ms.append((time.perf_counter() - start) * 1e3)
        plain = split(pictures)
    return DemoResult(
        clients=run.clients,
        dataset=run.dataset,
        epochs=run.epochs,
        cut=run.cut,
        seed=run.seed,
        accuracy_plain=_share(plain.argmax(1) == truth),
        accuracy_encrypted=_share(opened.argmax(1) == truth),
        agreement=_share(opened.argmax(1) == plain.argmax(1)),
        max_abs_error=(opened - plain).abs().max().item(),
        encrypted_predictions=len(opened),
        plain_ms_median=median(plain_ms),
        online_ms_median=median(online),
        offline_ms_median=median(offline),
        total_ms_median=median(one + other for one, other in zip(online, offline, strict=True)),
        rounds=cost["rounds"],
        bytes_online=cost["bytes_sent"] + cost["bytes_received"],
        bytes_offline=cost["bytes_offline"],
        bytes_training=bytes_training,
        seconds=time.monotonic() - began,
    )


def _share(hits: torch.Tensor) -> float:
    return hits.double().mean().item()


def _table(result: DemoResult) -> Table:
    table = Table(title=f"{result.dataset}, {result.clients} clients, {result.epochs} epochs, cut at '{result.cut}'")
    table.add_column("")
    table.add_column("plain", justify="right")
    table.add_column("encrypted", justify="right")
    table.add_row("test accuracy", f"{result.accuracy_plain:.2%}", f"{result.accuracy_encrypted:.2%}")
    table.add_row("identical labels", "", f"{result.agreement:.2%} of {result.encrypted_predictions}")
    table.add_row("largest difference of logits", "", f"{result.max_abs_error:.1e}")
    table.add_row(
        "time per prediction, online", f"{result.plain_ms_median:.2f} ms", f"{result.online_ms_median:.1f} ms"
    )
    table.add_row("time per prediction, offline", "", f"{result.offline_ms_median:.1f} ms")
    table.add_row("rounds per prediction", "", str(result.rounds))
    table.add_row("bytes per prediction, online", "", size(result.bytes_online))
    table.add_row("bytes per prediction, offline", "", size(result.bytes_offline))
    table.add_row("bytes of training, all links", size(result.bytes_training), "")
    table.add_row("whole demo", "", f"{result.seconds:.1f} s")
    return table


def _who_saw_what(cut: str) -> Table:
    table = Table(title="who saw what")
    table.add_column("party")
    table.add_column("in training")
    table.add_column("in prediction")
    table.add_row(
        "clients",
        "their own part of the data; the combined front",
        "their own images and results; the tail's architecture, not its weights",
    )
    table.add_row(
        "server",
        "activations at the cut and gradients of the head, in plain, which say something about labels; the combined "
        "front and head, and the mean loss, no single client's"
        if is_u(cut)
        else "activations at the cut and labels, in plain; the combined front, no single client's",
        "shapes and counts; masked values that are uniform whatever the image",
    )
    table.add_row("dealer", "seeds and who takes part", "seeds and shapes; nothing made from data or weights")
    return table


def as_json(result: DemoResult) -> dict[str, object]:
    """The result as it is written to a file."""
    return asdict(result)
