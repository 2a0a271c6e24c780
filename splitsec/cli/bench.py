"""`splitsec bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from splitsec.cli.common import Commands, check_writable, numbers, terminated_like_interrupted, write_json
from splitsec.errors import ConfigError


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the benchmarks."""
    bench = commands.add_parser("bench", help="measure")
    questions = bench.add_subparsers(title="benchmarks", required=True, metavar="WHAT")
    inference = questions.add_parser("inference", parents=[common], help="encrypted prediction against its peers")
    _inference_options(inference)
    sessions = questions.add_parser(
        "sessions", parents=[common], help="predictions a second for several clients at once"
    )
    sessions.add_argument("--model", default="m2", metavar="NAME", help="a built-in name or file.py:name (m2)")
    sessions.add_argument("--input", metavar="C,H,W", help="shape of one input, for a model of yours")
    sessions.add_argument("--sessions", default="1,4", metavar="N[,N]", help="clients at once (1,4)")
    sessions.add_argument("--predictions", type=int, default=200, metavar="N", help="of each client (200)")
    sessions.add_argument("--json", type=Path, metavar="FILE", help="also write the records to this file")
    sessions.set_defaults(run=_bench_sessions)
    zoo = questions.add_parser("models", parents=[common], help="torchvision's models at a late cut: the same labels?")
    zoo.add_argument("--model", metavar="NAME[:CUT][,...]", help="some of them (all)")
    zoo.add_argument("--json", type=Path, metavar="FILE", help="also write the records to this file")
    zoo.set_defaults(run=_bench_models)
    training = questions.add_parser(
        "training", parents=[common], help="samples a second of split training against plain PyTorch"
    )
    training.add_argument("--dataset", default="digits", metavar="NAME[,NAME]", help="digits, mnist (digits)")
    training.add_argument("--data-dir", type=Path, metavar="DIR", help="for mnist: the directory above MNIST/raw")
    training.add_argument("--clients", default="1,3,8", metavar="N[,N]", help="numbers of clients (1,3,8)")
    training.add_argument("--in-flight", default="2", metavar="N[,N]", help="batches on their way at once (2)")
    training.add_argument("--compress", default="none", metavar="KIND[,KIND]", help="see splitsec demo (none)")
    training.add_argument("--turns", type=int, default=3, metavar="N", help="measurements in turn (3)")
    training.add_argument("--json", type=Path, metavar="FILE", help="also write the records to this file")
    training.set_defaults(run=_bench_training)
    private = questions.add_parser(
        "privacy", parents=[common], help="accuracy at a privacy budget, split against Opacus on the uncut model"
    )
    private.add_argument("--dataset", default="digits", metavar="NAME[,NAME]", help="digits, mnist (digits)")
    private.add_argument("--data-dir", type=Path, metavar="DIR", help="for mnist: the directory above MNIST/raw")
    private.add_argument("--epsilon", default="1,3,8", metavar="E[,E]", help="budgets (1,3,8)")
    private.add_argument("--delta", type=float, default=1e-5, metavar="D", help="at this delta (1e-5)")
    private.add_argument("--clients", type=int, default=3, metavar="N", help="number of clients (3)")
    private.add_argument("--epochs", type=int, default=30, metavar="N", help="epochs of training (30)")
    private.add_argument("--seeds", type=int, default=5, metavar="N", help="runs of each, in turn (5)")
    private.add_argument("--json", type=Path, metavar="FILE", help="also write the records to this file")
    private.set_defaults(run=_bench_privacy)


def _bench_privacy(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from splitsec.bench.privacy import measure_private_training
    from splitsec.launch.local import LocalRun, check_run

    try:
        budgets = [float(one) for one in options.epsilon.split(",")]
    except ValueError:
        raise ConfigError(f"--epsilon {options.epsilon}: write numbers with commas between them") from None
    if options.seeds < 1:
        raise ConfigError("--seeds takes whole numbers of at least 1")
    names = options.dataset.split(",")
    for name in names:
        check_run(LocalRun(dataset=name))
    console = Console(emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 130
    records = []
    with terminated_like_interrupted(), console.status("") as status:
        for dataset in names:
            for budget in budgets:
                status.update(f"{dataset}, epsilon {budget:g}")
                records.append(
                    measure_private_training(
                        dataset,
                        budget,
                        clients=options.clients,
                        delta=options.delta,
                        data_dir=options.data_dir,
                        epochs=options.epochs,
                        seeds=options.seeds,
                    )
                )
                write_json(options.json, [asdict(one) for one in records])
    table = Table(title=f"differential privacy by record at delta {options.delta:g}, {options.clients} clients")
    for heading in ("dataset", "budget", "noise", "rate", "steps", "epsilon", "Opacus's", "split", "Opacus", "seeds"):
        table.add_column(heading, justify="left" if heading == "dataset" else "right")
    for one in records:
        table.add_row(
            one.dataset,
            f"{one.budget:g}",
            f"{one.noise:.3f}",
            f"{one.rate:.4f}",
            str(one.steps),
            f"{one.epsilon_split:.6f}",
            f"{one.epsilon_opacus:.6f}",
            f"{one.accuracy_split:.2%}",
            f"{one.accuracy_opacus:.2%}",
            str(one.seeds),
        )
    console.print(table)


def _bench_training(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from splitsec.bench.training import measure_training

    console = Console(emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 130
    settings = [
        (dataset, clients, in_flight, compress)
        for dataset in options.dataset.split(",")
        for clients in numbers(options.clients, "--clients")
        for in_flight in numbers(options.in_flight, "--in-flight")
        for compress in options.compress.split(",")
    ]
    records = []
    with terminated_like_interrupted(), console.status("") as status:
        for dataset, clients, in_flight, compress in settings:
            status.update(f"{dataset}, {clients} clients, {in_flight} in flight, compression {compress}")
            records.append(
                measure_training(
                    dataset,
                    clients,
                    data_dir=options.data_dir,
                    in_flight=in_flight,
                    compress=compress,
                    turns=options.turns,
                )
            )
            # What took minutes is not lost if the rest is interrupted.
            write_json(options.json, [asdict(one) for one in records])
    table = Table(title="samples per second of training, one thread a party")
    headings = ("dataset", "clients", "in flight", "compress", "split", "plain", "(threads)", "split/plain", "B/sample")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("dataset", "compress") else "right")
    for one in records:
        table.add_row(
            one.dataset,
            str(one.clients),
            str(one.in_flight),
            one.compress,
            f"{one.split:.0f}",
            f"{one.plain:.0f}",
            str(one.plain_threads),
            f"{one.share:.2f}",
            f"{one.bytes_per_sample:.0f}",
        )
    console.print(table)


def _bench_models(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from splitsec.bench.zoo import INPUTS, LATE_CUTS, run_zoo

    console = Console(emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 130
    names = [*LATE_CUTS] if options.model is None else options.model.split(",")
    with terminated_like_interrupted(), console.status("") as status:
        records = run_zoo(names, status.update)
    table = Table(title=f"random weights, {INPUTS} images of noise, batch 1")
    for heading in ("model", "cut", "tail's weights", "same label", "error", "online ms", "total ms", "rounds", "MB"):
        table.add_column(heading, justify="left" if heading in ("model", "cut") else "right")
    for one in records:
        found = one.result
        table.add_row(
            one.model,
            one.cut,
            f"{one.tail_parameters / 1e6:.2f} M",
            f"{round((found.agreement or 0) * INPUTS)} of {INPUTS}",
            f"{found.max_abs_error:.0e}",
            f"{found.online_ms_median:.0f}",
            f"{found.total_ms_median:.0f}",
            str(found.rounds),
            f"{found.bytes_online / 1e6:.1f} + {found.bytes_offline / 1e6:.1f}",
        )
    console.print(table)
    write_json(options.json, [asdict(one) for one in records])


def _inference_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="m1,m2", metavar="NAME[,NAME]", help="built-in names or file.py:name (m1,m2)")
    add("--batch", default="1", metavar="N[,N]", help="batch sizes (1)")
    add(
        "--engine",
        default="splitsec",
        metavar="NAME[,NAME]",
        help="splitsec, splitsec-dcf, crypten, crypten-1 (with one thread), spu (splitsec)",
    )
    add("--cut", default="input", metavar="NAME", help="where to cut (input: all of it encrypted)")
    add("--input", metavar="C,H,W", help="shape of one input, for a model of yours")
    add("--weights", type=Path, metavar="FILE", help="safetensors with the model's weights")
    add("--runs", type=int, default=20, metavar="N", help="counted runs (20)")
    add("--threads", type=int, default=1, metavar="N", help="threads a process (1)")
    add("--rtt", type=float, metavar="MS", help="emulate a link with this round trip time (none)")
    add("--bandwidth", type=float, default=100.0, metavar="MBIT", help="of the emulated link, a second (100)")
    add("--json", type=Path, metavar="FILE", help="also write the records to this file")
    parser.set_defaults(run=_bench_inference)


def _bench_inference(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from rich.console import Console

    from splitsec.bench.inference import run_bench
    from splitsec.bench.models import find_model
    from splitsec.bench.workload import Link, Workload

    shape = None if options.input is None else numbers(options.input, "--input")
    if (options.rtt is not None and not options.rtt >= 0) or not options.bandwidth > 0:
        raise ConfigError("--rtt takes milliseconds from 0 on, --bandwidth megabits a second above 0")
    link = None if options.rtt is None else Link(options.rtt, options.bandwidth)
    models = [find_model(name, shape) for name in options.model.split(",")]
    works = [
        Workload(model, batch, options.cut, options.weights, options.threads, link)
        for model in models
        for batch in numbers(options.batch, "--batch")
    ]
    with terminated_like_interrupted():
        records = run_bench(
            works, options.engine.split(","), runs=options.runs, console=Console(emoji=False, markup=False)
        )
    write_json(options.json, records)


def _bench_sessions(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from dataclasses import asdict

    from splitsec.bench.models import find_model
    from splitsec.bench.sessions import measure_sessions

    if options.predictions < 20:
        raise ConfigError("--predictions takes at least 20: the first tenth is not counted")
    model = find_model(options.model, None if options.input is None else numbers(options.input, "--input"))
    records = []
    with terminated_like_interrupted():
        for count in numbers(options.sessions, "--sessions"):
            record = measure_sessions(model, count, options.predictions)
            records.append(asdict(record))
            print(
                f"{record.model}, {count} at once: {record.per_second:.0f} predictions a second, "
                f"{record.ms_per_prediction:.1f} ms each for the slowest client"
            )
    write_json(options.json, records)
