"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from splitsec import __version__
from splitsec.errors import ConfigError, SplitsecError

if TYPE_CHECKING:
    from splitsec.parties.events import Report


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 for success, an error's own code, 130 for Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    code = 0
    try:
        options.run(options)
    except SplitsecError as error:
        code = _fail(options, error, str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _fail(options, None, "interrupted; everything that was started has been ended", 130)
    except Exception as error:  # the last line of defence: one line for people, the trace on request
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        code = _fail(options, error, f"unexpected {text}; run again with --verbose for the trace", 1)
    sys.exit(code)


def _fail(options: argparse.Namespace, error: BaseException | None, message: str, code: int) -> int:
    if options.verbose and error is not None:
        traceback.print_exception(error)
    if getattr(options, "events", "text") == "json":
        from splitsec.parties.events import Failed, to_json_lines

        kind = type(error).__name__ if error is not None else "KeyboardInterrupt"
        to_json_lines()(Failed(options.party, error=kind, message=message, exit_code=code))
    print(f"splitsec: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="splitsec", description="Secure split learning for PyTorch. Begin with: splitsec demo"
    )
    parser.add_argument("--version", action="version", version=f"splitsec {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="log everything, and show the trace of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", parents=[common], help="train, combine and predict encrypted on this machine, in five processes"
    )
    demo.add_argument("--clients", type=int, default=3, metavar="N", help="number of clients (3)")
    demo.add_argument("--epochs", type=int, default=30, metavar="N", help="epochs of training (30)")
    demo.add_argument(
        "--cut", default="pool", metavar="NAME", help="where the model is cut (pool); two names make a U: pool,fc2"
    )
    demo.add_argument("--dataset", choices=["digits", "mnist"], default="digits", help="real data to use (digits)")
    demo.add_argument("--data-dir", type=Path, metavar="DIR", help="for mnist: the directory above MNIST/raw")
    demo.add_argument("--seed", type=int, default=0, help="data, first weights and batches follow from it (0)")
    demo.add_argument(
        "--predictions", type=int, metavar="N", help="encrypted predictions, all clients together (at most 1000)"
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    demo.set_defaults(run=_demo)

    keys = commands.add_parser("keys", parents=[common], help="make CURVE key pairs")
    keys.add_argument("names", nargs="+", metavar="NAME", help="server, dealer, or a client's name")
    keys.add_argument("--out", type=Path, default=Path("keys"), metavar="DIR", help="where to write them (keys)")
    keys.add_argument("--json", type=Path, metavar="FILE", help="also write the paths and public keys to this file")
    keys.set_defaults(run=_keys)

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

    for role, what in (
        ("server", "run the server from its TOML file"),
        ("dealer", "run the dealer from its TOML file"),
        ("client", "run one client from its TOML file"),
    ):
        party = commands.add_parser(role, parents=[common], help=what)
        party.add_argument("--config", type=Path, required=True, metavar="FILE", help="the party's TOML file")
        party.add_argument("--events", choices=["text", "json"], default="text", help="how to report progress (text)")
        party.set_defaults(run=_party, role=role, party=role)
    return parser


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


def _demo(options: argparse.Namespace) -> None:
    _check_writable(options.json)
    from rich.console import Console

    from splitsec.launch.demo import as_json, run_demo
    from splitsec.launch.local import LocalRun

    run = LocalRun(
        clients=options.clients,
        epochs=options.epochs,
        cut=options.cut,
        dataset=options.dataset,
        data_dir=options.data_dir,
        seed=options.seed,
        predictions=options.predictions,
    )
    with _terminated_like_interrupted():
        result = run_demo(run, Console())
    _write_json(options.json, as_json(result))


def _bench_inference(options: argparse.Namespace) -> None:
    _check_writable(options.json)
    from rich.console import Console

    from splitsec.bench.inference import run_bench
    from splitsec.bench.models import find_model
    from splitsec.bench.workload import Link, Workload

    shape = None if options.input is None else _numbers(options.input, "--input")
    if (options.rtt is not None and not options.rtt >= 0) or not options.bandwidth > 0:
        raise ConfigError("--rtt takes milliseconds from 0 on, --bandwidth megabits a second above 0")
    link = None if options.rtt is None else Link(options.rtt, options.bandwidth)
    models = [find_model(name, shape) for name in options.model.split(",")]
    works = [
        Workload(model, batch, options.cut, options.weights, options.threads, link)
        for model in models
        for batch in _numbers(options.batch, "--batch")
    ]
    with _terminated_like_interrupted():
        records = run_bench(works, options.engine.split(","), runs=options.runs, console=Console())
    _write_json(options.json, records)


def _bench_sessions(options: argparse.Namespace) -> None:
    _check_writable(options.json)
    from dataclasses import asdict

    from splitsec.bench.models import find_model
    from splitsec.bench.sessions import measure_sessions

    if options.predictions < 20:
        raise ConfigError("--predictions takes at least 20: the first tenth is not counted")
    model = find_model(options.model, None if options.input is None else _numbers(options.input, "--input"))
    records = []
    with _terminated_like_interrupted():
        for count in _numbers(options.sessions, "--sessions"):
            record = measure_sessions(model, count, options.predictions)
            records.append(asdict(record))
            print(
                f"{record.model}, {count} at once: {record.per_second:.0f} predictions a second, "
                f"{record.ms_per_prediction:.1f} ms each for the slowest client"
            )
    _write_json(options.json, records)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{option} {text}: write whole numbers of at least 1, with commas between them")
    return numbers


def _keys(options: argparse.Namespace) -> None:
    _check_writable(options.json)
    from splitsec.transport.keys import load_public_key, make_keys

    written = make_keys(options.out, options.names)
    for path in written:
        print(f"{path}  (public: copy it to the other parties)")
        print(f"{path}_secret  (secret: stays here)")
    _write_json(
        options.json,
        {
            path.stem: {"path": str(path), "public": load_public_key(options.out, path.stem).decode()}
            for path in written
        },
    )


def _party(options: argparse.Namespace) -> None:
    from rich.console import Console

    from splitsec.parties import config
    from splitsec.parties.events import to_json_lines, to_terminal

    report: Report = to_json_lines() if options.events == "json" else to_terminal(Console())
    if options.events == "json":
        _end_with_parent()
    base = options.config.resolve().parent
    runs: dict[str, Callable[[], None]] = {
        "dealer": lambda: config.run_dealer(config.read_config(options.config, config.DealerConfig), base, report),
        "server": lambda: config.run_server(config.read_config(options.config, config.ServerConfig), base, report),
        "client": lambda: _client(options, base, report),
    }
    with _terminated_like_interrupted():
        runs[options.role]()


def _client(options: argparse.Namespace, base: Path, report: Report) -> None:
    from splitsec.parties import config

    settings = config.read_config(options.config, config.ClientConfig)
    options.party = settings.name
    config.run_client(settings, base, report)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that `finally` blocks run and nothing is left behind."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield


def _end_with_parent() -> None:
    """End this party when the process that started it is gone: its end of our standard input closes then."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _check_writable(path: Path | None) -> None:
    # Before a long run, not after it.
    if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ConfigError(f"cannot write {path}: {path.parent} is not a directory that can be written to")


def _write_json(path: Path | None, content: object) -> None:
    if path is not None:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(partial, path)


if __name__ == "__main__":
    main()
