"""`splitsec keys`, `server`, `dealer` and `client`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from splitsec.cli.common import Commands, check_writable, end_with_input, terminated_like_interrupted, write_json

if TYPE_CHECKING:
    from splitsec.events import Report


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add keys and the parties."""
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
        party.add_argument(
            "--end-with-input",
            action="store_true",
            help="end when standard input closes: for a program that starts parties and may die",
        )
        party.set_defaults(run=_party, role=role, party=role, inform=True)


def _keys(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from splitsec.transport.keys import fingerprint, load_public_key, make_keys

    written = make_keys(options.out, options.names)
    for path in written:
        mark = fingerprint(load_public_key(options.out, path.stem))
        print(f"{path}  (public: copy it to the other parties; fingerprint {mark})")
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

    from splitsec.events import to_json_lines, to_terminal
    from splitsec.parties import run as running
    from splitsec.settings import parties as config
    from splitsec.settings.checks import read_settings

    report: Report = to_json_lines() if options.events == "json" else to_terminal(Console(emoji=False, markup=False))
    if options.end_with_input:
        end_with_input()
    base = options.config.resolve().parent
    runs: dict[str, Callable[[], None]] = {
        "dealer": lambda: running.run_dealer(read_settings(options.config, config.DealerConfig), base, report),
        "server": lambda: running.run_server(read_settings(options.config, config.ServerConfig), base, report),
        "client": lambda: _client(options, base, report),
    }
    with terminated_like_interrupted():
        runs[options.role]()


def _client(options: argparse.Namespace, base: Path, report: Report) -> None:
    from splitsec.parties import run as running
    from splitsec.settings import parties as config
    from splitsec.settings.checks import read_settings

    settings = read_settings(options.config, config.ClientConfig)
    options.party = settings.name
    running.run_client(settings, base, report)
