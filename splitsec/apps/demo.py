"""The demo: a local run watched with progress bars, then judged against the same model in plain."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from torch import nn

from splitsec.apps.evaluate import Judged, align_in_plain, judge, judge_plain
from splitsec.cut import INPUT, SplitModel, is_u
from splitsec.cut.joined import CUT
from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.errors import ConfigError
from splitsec.events import AnyEvent, Joined, Predicted, RoundDone, size
from splitsec.local.run import LocalRun, execute, held_out_rows, load_vertical, make_data, prepare
from splitsec.local.simulation import SERVER_SEED, SimulationSettings, simulate
from splitsec.parties.run import make_segments
from splitsec.parties.run_columns import load_columns_model
from splitsec.party_names import SERVER
from splitsec.privacy.ledger import Ledger, find_ledgers
from splitsec.settings.run import MODEL_PARTS
from splitsec.settings.setting import Bounds, setting


@dataclass(frozen=True, kw_only=True)
class DemoOptions(LocalRun):
    """What `splitsec demo` is asked for: a local run, and what to do with it."""

    json: Annotated[Path, setting("Also write the figures to this file.")] | None = None
    checkpoints: (
        Annotated[Path, setting("Directory in which keys, data and checkpoints stay, to go on from them.")] | None
    ) = None
    simulate: Annotated[bool, setting("Virtual clients in one process; predictions are plain then.")] = False
    drop: Annotated[
        float, setting("With simulate: fraction of clients that drop out of each round.", Bounds(least=0, below=1))
    ] = 0.0
    verbose: Annotated[bool, setting("Log everything, and show the trace of an error.")] = False


@dataclass(frozen=True)
class DemoResult(Judged):
    """The demo's figures: times in milliseconds a query, bytes of one query both ways, `seconds` of the whole demo.

    `dropped` counts how often a client did not finish a round; `samples_per_second` is that of training. `epsilon` is
    what the run has spent at `delta`, of the client that spent most, and against another client, which knows its share
    of the noise; None where it promises nothing.
    """

    layout: str
    clients: int
    dataset: str
    epochs: int
    cut: str
    seed: int
    dropped: int
    samples_per_second: float
    bytes_training: int
    seconds: float
    epsilon: float | None
    epsilon_against_another_client: float | None
    delta: float | None


def run_demo(run: LocalRun, console: Console, *, checkpoints: Path | None = None) -> DemoResult:
    """Run the demo and print its table; every process that it started is gone afterwards.

    Args:
        checkpoints: a directory for keys, data and checkpoints of all parties, which stays: a run that was interrupted
            goes on from it. Without one every file is gone afterwards.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        if checkpoints is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="splitsec-")))
        else:
            directory = checkpoints
            directory.mkdir(parents=True, exist_ok=True)
        parts = prepare(run, directory)
        with _Watch(run, console) as watch:
            held_out = held_out_rows(run, parts)
            execute(run, directory, held_out=held_out, keep=checkpoints is not None, on_event=watch.show)
        judged = judge(run, directory, parts)
        ledgers = find_ledgers(directory) if run.privacy.epsilon else []
        result = _result(run, judged, watch, began, ledgers)
    console.print(_table(result))
    console.print(_who_saw_what(run))
    return result


def simulate_demo(run: LocalRun, console: Console, *, drop: float = 0.0, checkpoints: Path | None = None) -> DemoResult:
    """Train the demo with virtual clients in this process; predictions are plain.

    Args:
        drop: the share of clients that drops out in each round.
        checkpoints: a directory in which the virtual parties keep theirs.
    """
    if run.layout == MODEL_PARTS:
        raise ConfigError("parts of a model are trained by each client alone; there is nothing to simulate")
    began = time.monotonic()
    parts = make_data(run)
    with _Watch(run, console, simulated=True) as watch:
        named = dict(zip(run.names, parts, strict=True))
        if run.layout == "vertical":
            whole_model = load_columns_model(run.model, run.seed + SERVER_SEED)
            tail: nn.Module = SplitModel(whole_model.tail, INPUT).tail
            fronts = load_columns_model(run.model, run.seed).fronts
            begin = {name: [fronts[name]] for name in run.names}
            cut = CUT
        else:
            cut, (tail,) = make_segments(run.model, run.where, run.seed + SERVER_SEED, ("tail",))
            roles = ("front", "head") if is_u(run.where) else ("front",)
            sample = next(part.train_images for part in parts if isinstance(part, Part))
            _, first = make_segments(run.model, run.where, run.seed, roles, sample=sample)  # type: ignore[arg-type]
            begin = {name: list[nn.Module](first) for name in run.names}
        simulated = simulate(
            tail,
            lambda name: copy.deepcopy(begin[name]),
            named,  # type: ignore[arg-type]
            cut=cut,
            settings=run.settings,
            # All parties are on this machine, with data of its own.
            how=SimulationSettings(seed=run.seed, drop=drop, checkpoints=checkpoints, repeatable=True),
            report=watch.show,
        )
    watch.samples, watch.dropped = sum(done.samples for done in simulated.rounds), simulated.dropped
    watch.began, watch.ended = 0.0, simulated.seconds
    if run.layout == "vertical":
        columns = [part for part in parts if isinstance(part, Columns)]
        aligned, count = align_in_plain(run, columns)
        labels = aligned[0].labels
        assert labels is not None
        trained = load_vertical(run.model)
        for name in run.names:
            trained.fronts[name] = simulated.segments[name][0]
        trained.tail = tail
        judged = judge_plain(trained, tuple(columns.values[count:] for columns in aligned), labels[count:])
    else:
        rows = [part for part in parts if isinstance(part, Part)]
        pieces = simulated.segments[run.names[0]]
        whole = nn.Sequential(pieces[0], tail, *pieces[1:])
        images = torch.cat([row.test_images for row in rows])
        judged = judge_plain(whole, (images,), torch.cat([row.test_labels for row in rows]))
    result = _result(run, judged, watch, began, list(simulated.ledgers.values()))
    console.print(_table(result))
    return result


def _result(run: LocalRun, judged: Judged, watch: _Watch, began: float, ledgers: Sequence[Ledger]) -> DemoResult:
    spent = [ledger.spent for ledger in ledgers] if run.privacy.epsilon else []
    return DemoResult(
        **asdict(judged),
        layout=run.layout,
        clients=len(run.names),
        dataset=run.data,
        epochs=run.epochs,
        cut=run.where,
        seed=run.seed,
        dropped=watch.dropped,
        samples_per_second=watch.samples / max(1e-9, watch.ended - watch.began),
        bytes_training=watch.bytes_training,
        seconds=time.monotonic() - began,
        epsilon=max(spent) if spent else None,
        epsilon_against_another_client=ledgers[0].against_another_client() if spent else None,
        delta=run.privacy.delta if spent else None,
    )


class _Watch:
    """Progress bars: one for the server's rounds, one a client with its link's traffic and its predictions."""

    def __init__(self, run: LocalRun, console: Console, *, simulated: bool = False) -> None:
        self.bytes_training = 0
        self.samples = 0
        self.dropped = 0
        self.began = self.ended = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=8)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            console=console,
        )
        self._run = run
        # Of parts of a model the clients report, of everything else the server does.
        self._alone = run.layout == MODEL_PARTS
        self._shown = run.names if self._alone else [SERVER] if simulated else [SERVER, *run.names]
        self._rounds: dict[str, TaskID] = {}
        self._predicting: dict[str, TaskID] = {}

    def __enter__(self) -> _Watch:
        self._progress.start()
        for name in self._shown:
            note = "rounds: waiting for all parties"
            self._rounds[name] = self._progress.add_task(name, total=self._run.epochs, note=note)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._progress.stop()

    def show(self, event: AnyEvent) -> None:
        if isinstance(event, Joined) and event.party == SERVER:
            self.began = time.monotonic()
        if isinstance(event, RoundDone) and event.party in self._rounds:
            self._round(event)
        elif isinstance(event, Predicted):
            if event.party not in self._predicting:
                self._predicting[event.party] = self._progress.add_task(
                    event.party, total=event.total, note="encrypted predictions"
                )
            self._progress.update(self._predicting[event.party], completed=event.done)

    def _round(self, event: RoundDone) -> None:
        if event.party == SERVER or self._alone:
            self.samples += event.samples
            self.dropped += len(event.dropped)
            self.ended = time.monotonic()
            self.bytes_training = max(self.bytes_training, event.bytes_sent + event.bytes_received)
            note = f"loss {event.loss:.3f}  accuracy {event.accuracy:.1%}"
            note += f"  without {', '.join(event.dropped)}" if event.dropped else ""
        else:
            note = f"{size(event.bytes_sent)} sent, {size(event.bytes_received)} received"
        self._progress.update(self._rounds[event.party], completed=event.round, total=event.rounds, note=note)


def _table(result: DemoResult) -> Table:
    cut = f", cut at '{result.cut}'" if result.cut else f", {result.layout}"
    table = Table(title=f"{result.dataset}, {result.clients} clients, {result.epochs} epochs{cut}")
    table.add_column("")
    table.add_column("plain", justify="right")
    table.add_column("encrypted", justify="right")
    of = "query" if result.batch > 1 else "prediction"
    encrypted = "" if result.accuracy_encrypted is None else f"{result.accuracy_encrypted:.2%}"
    table.add_row("test accuracy", f"{result.accuracy_plain:.2%}", encrypted)
    if result.encrypted_predictions and result.accuracy_held_out != result.accuracy_plain:
        table.add_row("test accuracy, all held-out rows", f"{result.accuracy_held_out:.2%}", "")
    if result.auc is not None:
        if result.auc_joined is None:
            table.add_row("area under the ROC curve", f"{result.auc:.4f}", "")
        else:
            what = "area under the ROC curve (plain: trained on joined columns)"
            table.add_row(what, f"{result.auc_joined:.4f}", f"{result.auc:.4f}")
    if result.rounds is not None:
        table.add_row("identical labels", "", f"{result.agreement:.2%} of {result.encrypted_predictions}")
        table.add_row("largest difference of logits", "", f"{result.max_abs_error:.1e}")
        online = f"{result.online_ms_median:.1f} ms"
        rows = f" of {result.batch}" if result.batch > 1 else ""
        table.add_row(f"time per {of}{rows}, online", f"{result.plain_ms_median:.2f} ms", online)
        table.add_row(f"time per {of}{rows}, offline", "", f"{result.offline_ms_median:.1f} ms")
        table.add_row(f"rounds per {of}", "", str(result.rounds))
        table.add_row(f"bytes per {of}, online", "", size(result.bytes_online or 0))
        table.add_row(f"bytes per {of}, offline", "", size(result.bytes_offline or 0))
    table.add_row("samples per second of training", f"{result.samples_per_second:.0f}", "")
    if result.epsilon is not None:
        table.add_row("privacy spent in training", f"epsilon {result.epsilon:.3f}", "")
        if result.epsilon_against_another_client is not None:
            against = f"epsilon {result.epsilon_against_another_client:.3f}"
            table.add_row("the same, against another client", against, "")
    if result.dropped:
        table.add_row("clients dropped from a round", str(result.dropped), "")
    if result.bytes_training:
        table.add_row("bytes of training, all links", size(result.bytes_training), "")
    table.add_row("whole demo", "", f"{result.seconds:.1f} s")
    return table


_IN_TRAINING = {
    "horizontal": (
        "their own part of the data; the combined front",
        "activations at the cut and labels, in plain; the combined front, no single client's",
        "seeds and who takes part",
    ),
    "u": (
        "their own part of the data; the combined front and head",
        "activations at the cut and gradients of the head, in plain, which say something about labels; the combined "
        "front and head, and the mean loss, no single client's",
        "seeds and who takes part",
    ),
    "vertical": (
        "their own columns; which of their people the others have too",
        "activations at the cut and labels, in plain; how many people each client has, but not whom",
        "seeds and who takes part",
    ),
    MODEL_PARTS: (
        "their own part of the data and of the model",
        "layers and their shapes, the order of magnitude of values; weights under masks, uniform whatever they are",
        "seeds of those masks",
    ),
}


def _who_saw_what(run: LocalRun) -> Table:
    layout = "u" if run.where and is_u(run.where) else run.layout
    clients, server, dealer = _IN_TRAINING[layout]
    table = Table(title="who saw what")
    table.add_column("party")
    table.add_column("in training")
    table.add_column("in prediction")
    own = "their own images and results; the tail's architecture, not its weights"
    if layout == "vertical":
        own = "the one who asks: the results; the others: which rows are asked for"
    elif layout == MODEL_PARTS:
        own = "their own images and results; the layers of the others' parts, not their weights"
    table.add_row("clients", clients, own)
    table.add_row("server", server, "shapes and counts; masked values that are uniform whatever the input")
    table.add_row("dealer", dealer, "seeds and shapes; of weights how large they are, of data nothing")
    return table


def as_json(result: DemoResult) -> dict[str, object]:
    """Return the result as it is written to a file."""
    return asdict(result)
