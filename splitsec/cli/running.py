"""`splitsec demo`, `keys`, `server`, `dealer` and `client`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from splitsec.cli.common import Commands, check_writable, end_with_parent, terminated_like_interrupted, write_json

if TYPE_CHECKING:
    from splitsec.parties.events import Report


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the demo, keys and the parties."""
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

    for role, what in (
        ("server", "run the server from its TOML file"),
        ("dealer", "run the dealer from its TOML file"),
        ("client", "run one client from its TOML file"),
    ):
        party = commands.add_parser(role, parents=[common], help=what)
        party.add_argument("--config", type=Path, required=True, metavar="FILE", help="the party's TOML file")
        party.add_argument("--events", choices=["text", "json"], default="text", help="how to report progress (text)")
        party.set_defaults(run=_party, role=role, party=role)


def _demo(options: argparse.Namespace) -> None:
    check_writable(options.json)
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
    with terminated_like_interrupted():
        result = run_demo(run, Console())
    write_json(options.json, as_json(result))


def _keys(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from splitsec.transport.keys import load_public_key, make_keys

    written = make_keys(options.out, options.names)
    for path in written:
        print(f"{path}  (public: copy it to the other parties)")
        print(f"{path}_secret  (secret: stays here)")
    write_json(
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
        end_with_parent()
    base = options.config.resolve().parent
    runs: dict[str, Callable[[], None]] = {
        "dealer": lambda: config.run_dealer(config.read_config(options.config, config.DealerConfig), base, report),
        "server": lambda: config.run_server(config.read_config(options.config, config.ServerConfig), base, report),
        "client": lambda: _client(options, base, report),
    }
    with terminated_like_interrupted():
        runs[options.role]()


def _client(options: argparse.Namespace, base: Path, report: Report) -> None:
    from splitsec.parties import config

    settings = config.read_config(options.config, config.ClientConfig)
    options.party = settings.name
    config.run_client(settings, base, report)
