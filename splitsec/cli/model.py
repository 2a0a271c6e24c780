"""`splitsec cuts` and `splitsec predict`, for a user's own model."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from splitsec.cli.common import Commands, check_writable, numbers, terminated_like_interrupted, write_json
from splitsec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from rich.console import Console
    from rich.table import Table

    from splitsec.advisor import CutCost
    from splitsec.apps.predict import PredictResult

MODEL_HELP = (
    "package.module:name, file.py:name or the name of a torchvision model; behind it several inputs, and the result "
    "that is meant: 'file.py:name(numbers: 5, codes: 3 int64) -> logits'"
)


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add `cuts` and `predict`."""
    cuts = commands.add_parser("cuts", parents=[common], help="where a model can be cut, and what each cut costs")
    cuts.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    cuts.add_argument("--input", metavar="C,H,W", help="shape of one input, such as 3,32,32, unless MODEL says it")
    cuts.add_argument("--allow-values", type=int, default=1, metavar="N", help="also cuts at which N values cross (1)")
    cuts.add_argument("--weights", type=Path, metavar="FILE", help="safetensors with the model's weights")
    cuts.add_argument("--rtt", type=float, default=0.0, metavar="MS", help="round trip of the links (this machine's)")
    cuts.add_argument("--bandwidth", type=float, metavar="MBIT", help="of the links, a second (this machine's)")
    cuts.add_argument(
        "--leakage",
        metavar="DATA",
        help="also measure what each cut leaks of these inputs, and mark dominated cuts: an npz file with images, or "
        "the name of a dataset, such as digits",
    )
    cuts.add_argument("--data-dir", type=Path, metavar="DIR", help="where the dataset's files are (mnist: MNIST/raw)")
    cuts.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    cuts.add_argument("--plot", type=Path, metavar="FILE", help="draw cost along the model: .png, .svg or .pdf")
    cuts.set_defaults(run=_cuts)

    predict = commands.add_parser(
        "predict", parents=[common], help="encrypted predictions of your model, with all parties on this machine"
    )
    predict.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    predict.add_argument(
        "--cut", required=True, metavar="NAME", help="where to cut, see splitsec cuts; NAME,NAME for a U"
    )
    predict.add_argument(
        "--allow-values", type=int, default=1, metavar="N", help="how many values may cross the cut (1)"
    )
    predict.add_argument("--weights", type=Path, metavar="FILE", help="safetensors with the model's weights")
    predict.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="npz with images, or each input by name; perhaps labels",
    )
    predict.add_argument("--output", default="", metavar="NAME", help="which result, if the model returns several")
    predict.add_argument("--count", type=int, metavar="N", help="only the first N images")
    predict.add_argument("--batch", type=int, default=1, metavar="N", help="images a query (1)")
    predict.add_argument(
        "--calibration", type=Path, metavar="FILE", help="npz with images that are no secret, to measure ranges (noise)"
    )
    predict.add_argument(
        "--checked", action="store_true", help="name the layer whose values leave their range; three times the bytes"
    )
    predict.add_argument(
        "--engine", choices=("splitsec", "crypten"), default="splitsec", help="whose functions layers run through"
    )
    predict.add_argument("--json", type=Path, metavar="FILE", help="also write labels and figures to this file")
    predict.set_defaults(run=_predict)


def _cuts(options: argparse.Namespace) -> None:
    check_writable(options.json)
    check_writable(options.plot)
    if options.plot is not None:
        from splitsec.advisor.plot import check_format

        check_format(options.plot)
    if not options.rtt >= 0 or (options.bandwidth is not None and not options.bandwidth > 0):
        raise ConfigError("--rtt takes milliseconds from 0 on, --bandwidth megabits a second above 0")
    shape = None if options.input is None else numbers(options.input, "--input")
    from rich.console import Console

    from splitsec.advisor import Link, list_cuts
    from splitsec.models.load import load_model, load_weights

    console = Console(emoji=False, markup=False)
    with console.status("loading the model") as status:
        model = load_model(options.model)
        if options.weights is not None:
            load_weights(model, options.weights)
        images = None if options.leakage is None else _inputs(options.leakage, options.model, options.data_dir)
        link = Link(options.rtt) if options.bandwidth is None else Link(options.rtt, options.bandwidth)
        costs = list_cuts(
            model,
            shape,
            link=link,
            images=images,
            allow_values=options.allow_values,
            progress=lambda done, whole: status.update(f"cut {done} of {whole}"),
        )
    where = "this machine's own links"
    if options.rtt or options.bandwidth is not None:
        limit = "unlimited" if options.bandwidth is None else f"{options.bandwidth:g}"
        where = f"{options.rtt:g} ms round trip, {limit} Mbit/s"
    _show_cuts(costs, where, options.model, console)
    if options.plot is not None:
        from splitsec.advisor.plot import draw

        draw(costs, options.plot, f"{options.model}, input {options.input}")
    write_json(options.json, [asdict(cost) for cost in costs])


def _inputs(source: str, model: str, data_dir: Path | None) -> torch.Tensor:
    from splitsec.apps.samples import Samples
    from splitsec.data.datasets import DATASETS, load_dataset

    if source in DATASETS:
        return load_dataset(source, data_dir, 0).test_images
    return Samples.load(Path(source), model)[0].images.float()


def _show_cuts(costs: Sequence[CutCost], link: str, model: str, console: Console) -> None:
    from rich.text import Text

    leaking = any(cost.leak is not None for cost in costs)
    longest = max(len("cut after"), *(len(cost.name) for cost in costs))
    width = _WIDE + longest + (20 + longest if leaking else 0)
    wide = not console.is_terminal or console.width >= width
    if not console.is_terminal:
        console.width = max(console.width, width)
    table = _cut_table(f"{model}: one encrypted prediction by the tail ({link})", longest, wide=wide, leaking=leaking)
    reasons: dict[str, int] = {}
    for cost in costs:
        row = [
            *_plain_cells(cost, wide=wide),
            *_encrypted_cells(cost, reasons),
            *(_leak_cells(cost) if leaking else ()),
        ]
        table.add_row(Text(cost.name), *map(Text, row), style="dim" if cost.dominated_by else None)
    console.print(table)
    for reason, number in reasons.items():
        console.print(Text(f"[{number}] {reason}"))
    console.print(
        "Rounds and bytes are exact for these weights and inputs of usual size (larger values take wider comparisons); "
        "milliseconds are predicted, one thread a party.",
        soft_wrap=True,
    )
    if leaking:
        console.print(
            "Leaks: in plain training; the fraction of the inputs' variance that a linear reconstruction recovers "
            "(splitsec audit attacks harder), and distance correlation. A dominated cut has another that leaks no "
            "more, takes no longer and moves no more: what may still speak for it is how little the client holds and "
            "computes. Encrypted predictions leak nothing of it at any cut.",
            soft_wrap=True,
        )
    if not wide:
        console.print(f"A terminal of {width} columns shows weights and multiply-adds too, as --json does.")


def _cut_table(title: str, longest: int, *, wide: bool, leaking: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("cut after", no_wrap=wide, overflow="fold", min_width=min(longest, 24))
    headings = _HEADINGS if wide else _HEADINGS[:1] + _HEADINGS[-5:]
    for heading in headings + (_LEAKING if leaking else ()):
        table.add_column(heading, justify="right", no_wrap=heading != _LEAKING[-1])
    return table


def _plain_cells(cost: CutCost, *, wide: bool) -> list[str]:
    counts = (cost.elements, cost.front_parameters, cost.tail_parameters, cost.front_macs, cost.tail_macs)
    return ["x".join(map(str, cost.shape)), *(_short(count) for count in counts if wide)]


def _encrypted_cells(cost: CutCost, reasons: dict[str, int]) -> list[str]:
    """Return rounds, bytes and milliseconds, or the number of the reason why there are none."""
    encrypted = cost.encrypted
    if encrypted is None:
        number = reasons.setdefault(cost.reason, len(reasons) + 1)
        return [f"none [{number}]", "", "", "", ""]
    times = (f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}" for ms in (encrypted.online_ms, encrypted.offline_ms))
    return [str(encrypted.rounds), _short(encrypted.bytes_online), _short(encrypted.bytes_offline), *times]


def _leak_cells(cost: CutCost) -> list[str]:
    leak = cost.leak
    measures = ["", ""] if leak is None else [f"{leak.recovered:.2f}", f"{leak.distance_correlation:.2f}"]
    return [*measures, "" if cost.dominated_by is None else f"by {cost.dominated_by}"]


_WIDE = 102
_LEAKING = ("leaks\nlinear", "\ndistance", "\ndominated")
_HEADINGS = (
    "sends",
    "values",
    "weights\nfront",
    "\ntail",
    "mult-adds\nfront",
    "\ntail",
    "encrypted\nrounds",
    "bytes\nonline",
    "\noffline",
    "ms\nonline",
    "\noffline",
)


def _short(count: float) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 999.5 or unit == "G":
            return f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("a number has a unit")


def _predict(options: argparse.Namespace) -> None:
    check_writable(options.json)
    if options.batch < 1 or (options.count is not None and options.count < 1):
        raise ConfigError("--batch and --count take whole numbers of at least 1")
    from rich.console import Console

    from splitsec.apps.predict import PredictionTask, as_json, counted, predict
    from splitsec.apps.samples import Samples
    from splitsec.cut import Signature
    from splitsec.machine import keep_memory

    # This process is the client, and nothing else.
    keep_memory()
    place, given = Signature.split(options.model)
    signature = replace(given, output=options.output or given.output)
    samples, source = Samples.load(options.input, f"{place}{signature}")
    if options.count is not None:
        labels = None if samples.labels is None else samples.labels[: options.count]
        samples = Samples(samples.images[: options.count], labels)
    calibration = None if options.calibration is None else Samples.load(options.calibration, source)[0]
    console = Console(emoji=False, markup=False)
    with terminated_like_interrupted(), console.status("loading the model") as status:
        task = PredictionTask(
            source=source,
            cut=_with_values(options.cut, options.allow_values),
            weights=options.weights,
            calibration=calibration,
            batch_size=options.batch,
            checked=options.checked,
            engine=options.engine,
        )
        result = predict(
            task,
            samples,
            report=counted(lambda done, whole: status.update(f"{done} of {whole} encrypted predictions")),
            on_start=status.update,
        )
    _show_predictions(result, options.model, console)
    write_json(options.json, as_json(result))


def _with_values(cut: str, count: int) -> str:
    """Return a cut that lets several values cross, as all parties call it."""
    first, comma, head = cut.partition(",")
    return cut if count <= 1 or "@" in first else f"{first}@{count}{comma}{head}"


def _show_predictions(result: PredictResult, model: str, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"{model}, cut at '{result.cut}', {result.predictions} images")
    table.add_column("")
    table.add_column("plain", justify="right")
    table.add_column("encrypted", justify="right")
    if result.accuracy_plain is not None and result.accuracy_encrypted is not None:
        table.add_row("accuracy", f"{result.accuracy_plain:.2%}", f"{result.accuracy_encrypted:.2%}")
    if result.agreement is not None:
        table.add_row("identical labels", "", f"{result.agreement:.2%} of {result.predictions}")
    table.add_row("largest difference of results", "", f"{result.max_abs_error:.1e}")
    table.add_row("time a query, online", f"{result.plain_ms_median:.2f} ms", f"{result.online_ms_median:.1f} ms")
    table.add_row("time a query, with offline work", "", f"{result.total_ms_median:.1f} ms")
    table.add_row("rounds", "", str(result.rounds))
    table.add_row("bytes online, offline", "", f"{_short(result.bytes_online)}, {_short(result.bytes_offline)}")
    table.add_row("ranges", "", result.ranges)
    console.print(table)
    if result.labels is not None:
        first = ", ".join(map(str, result.labels[:20]))
        console.print(f"labels: {first}{', ...' if len(result.labels) > 20 else ''}")
    if result.undecided:
        console.print(
            f"{result.undecided} images have their two largest results in plain closer than fixed point resolves "
            "(3e-5): their labels are chance"
        )
    console.print(
        "The server saw shapes and counts; only the client could open the results. Everything ran on this machine."
    )
