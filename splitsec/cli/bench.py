"""`splitsec bench MODEL`: encrypted against plaintext latency of a model on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from splitsec.cli.common import Commands, check_writable, numbers, terminated_like_interrupted, write_json
from splitsec.errors import ConfigError

ENGINES = ("splitsec", "crypten")
# What was measured by a command of this name, and is by a program of the checkout now.
MOVED = {
    "inference": "inference",
    "sessions": "sessions",
    "models": "torchvision_models",
    "training": "training",
    "privacy": "private_training",
}


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the benchmark of a model."""
    bench = commands.add_parser(
        "bench", parents=[common], help="time encrypted predictions of your model beside plain ones"
    )
    bench.add_argument("model", metavar="MODEL", help="file.py:name, module:name, or a built-in name such as m2")
    bench.add_argument("--cut", default="input", metavar="NAME", help="where to cut (input: all of it encrypted)")
    bench.add_argument("--input", metavar="C,H,W", help="shape of one input, such as 3,32,32")
    bench.add_argument("--weights", type=Path, metavar="FILE", help="safetensors with the model's weights")
    bench.add_argument("--batch-size", default="1", metavar="N[,N]", help="rows of a query (1)")
    bench.add_argument("--threads", type=int, default=1, metavar="N", help="threads a process (1)")
    bench.add_argument("--runs", type=int, default=20, metavar="N", help="counted queries (20)")
    bench.add_argument("--engine", default="splitsec", metavar="NAME[,NAME]", help="splitsec, crypten, or both")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the records to this file")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    if options.model in MOVED:
        raise ConfigError(
            f"splitsec bench {options.model} is a program of the checkout now: python -m benchmarks."
            f"{MOVED[options.model]} --help; splitsec bench MODEL measures a model of yours"
        )
    check_writable(options.json)
    if options.runs < 1 or options.threads < 1:
        raise ConfigError("--runs and --threads take whole numbers of at least 1")
    engines = [name.strip() for name in options.engine.split(",")]
    if not set(engines) <= set(ENGINES):
        raise ConfigError(
            f"--engine takes {' and '.join(ENGINES)}; stock CrypTen and others run by python -m benchmarks.inference "
            "in a checkout"
        )
    batches = numbers(options.batch_size, "--batch-size")
    shape = None if options.input is None else numbers(options.input, "--input")
    from dataclasses import asdict

    from rich.console import Console

    from splitsec.apps.latency import measure_latency, show_latency
    from splitsec.apps.workload import Workload
    from splitsec.models.literature import find_model

    model = find_model(options.model, shape)
    console = Console(emoji=False, markup=False)
    with terminated_like_interrupted(), console.status("starting a dealer and a server"):
        works = [Workload(model, batch, options.cut, options.weights, options.threads) for batch in batches]
        records = [measure_latency(work, runs=options.runs, engine=engine) for work in works for engine in engines]
    show_latency(records, console)
    write_json(options.json, [asdict(record) for record in records])
