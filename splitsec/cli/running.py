"""`splitsec demo`, `keys`, `server`, `dealer` and `client`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from splitsec.cli.common import Commands, check_writable, end_with_input, terminated_like_interrupted, write_json

if TYPE_CHECKING:
    from splitsec.parties.events import Report


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the demo, keys and the parties."""
    demo = commands.add_parser(
        "demo", parents=[common], help="train, combine and predict encrypted on this machine, in five processes"
    )
    demo.add_argument(
        "--topology",
        choices=["horizontal", "u", "vertical", "halves"],
        default="horizontal",
        help="clients hold rows; rows whose labels stay with them; columns of the same people; or train parts of the "
        "model (horizontal)",
    )
    demo.add_argument("--clients", type=int, metavar="N", help="number of clients (3; vertical and halves 2)")
    demo.add_argument("--epochs", type=int, default=30, metavar="N", help="epochs of training (30)")
    demo.add_argument("--cut", metavar="NAME", help="where the model is cut (pool); two names make a U: pool,fc2")
    demo.add_argument(
        "--dataset",
        choices=["digits", "mnist", "breast", "credit"],
        help="real data to use (digits; vertical: breast)",
    )
    demo.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="for mnist: the directory above MNIST/raw; for credit: above vertical",
    )
    demo.add_argument("--seed", type=int, default=0, help="data, first weights and batches follow from it (0)")
    demo.add_argument(
        "--predictions", type=int, metavar="N", help="encrypted predictions, all clients together (at most 1000)"
    )
    demo.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    training = demo.add_argument_group("training of clients with rows")
    training.add_argument(
        "--partition",
        default="iid",
        metavar="KIND",
        help="which rows go to which client: iid, dirichlet:ALPHA, shards:LABELS or files:DIR (iid)",
    )
    training.add_argument(
        "--combine",
        choices=["average", "relay", "none"],
        default="average",
        help="average the clients' segments, hand them from one to the next, or leave each its own (average)",
    )
    training.add_argument(
        "--every", type=int, default=0, metavar="STEPS", help="steps between two averages (0: an epoch)"
    )
    training.add_argument("--minimum", type=int, default=2, metavar="N", help="fewest clients in an average (2)")
    training.add_argument("--proximal", type=float, default=0.0, metavar="MU", help="weight of FedProx's term (0)")
    training.add_argument(
        "--server-momentum", type=float, default=0.0, metavar="BETA", help="momentum of the averages (0)"
    )
    training.add_argument("--decay", action="store_true", help="let the learning rate fall to nothing over the rounds")
    training.add_argument("--batch-size", type=int, metavar="N", help="of each client (16; mnist 32)")
    training.add_argument(
        "--in-flight", type=int, metavar="N", help="batches of a client on their way at once (2; vertical 1)"
    )
    training.add_argument(
        "--compress",
        default="none",
        metavar="KIND",
        help="how activations and gradients travel: none, float16, bfloat16 or topk:FRACTION (none)",
    )
    _privacy_options(demo.add_argument_group("privacy of what is trained"))
    demo.add_argument(
        "--simulate", action="store_true", help="virtual clients in one process; predictions are plain then"
    )
    demo.add_argument(
        "--drop", type=float, default=0.0, metavar="SHARE", help="with --simulate: clients that drop out of each round"
    )
    demo.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="keep keys, data and checkpoints here, and go on from them"
    )
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
        party.add_argument(
            "--end-with-input",
            action="store_true",
            help="end when standard input closes: for a program that starts parties and may die",
        )
        party.set_defaults(run=_party, role=role, party=role, inform=True)


def _privacy_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dp-epsilon", type=float, metavar="E", help="train with differential privacy within this budget (none)")
    add("--dp-delta", type=float, default=1e-5, metavar="D", help="at this delta, at most 1 / records (1e-5)")
    add("--dp-unit", choices=["record", "client"], default="record", help="whom the budget protects (record)")
    add("--dp-clip", type=float, default=1.0, metavar="C", help="norm to which gradients or updates are clipped (1)")
    add("--dp-accountant", choices=["prv", "rdp"], default="prv", help="Opacus's accountant (prv)")
    add("--dp-local", action="store_true", help="by record: every client adds all of the noise, not a share of it")
    add("--activation-clip", type=float, default=0.0, metavar="C", help="norm to which activations are clipped (none)")
    add(
        "--activation-noise",
        type=float,
        default=0.0,
        metavar="S",
        help="noise on activations in training, as a multiple of their clip (0)",
    )
    add(
        "--nopeek", type=float, default=0.0, metavar="W", help="weight of NoPeek's distance correlation in the loss (0)"
    )


def _demo(options: argparse.Namespace) -> None:
    check_writable(options.json)
    from rich.console import Console

    from splitsec.errors import ConfigError
    from splitsec.launch.demo import as_json, run_demo, simulate_demo
    from splitsec.launch.local import LocalRun

    settings = {name: value for name, value in vars(options).items() if name in LocalRun.__dataclass_fields__}
    run = LocalRun(**settings)
    if options.drop and not options.simulate:
        raise ConfigError("--drop needs --simulate: virtual clients drop out as told, processes when they are ended")
    if options.simulate and options.predictions is not None:
        raise ConfigError("--predictions does nothing with --simulate, where predictions are plain; leave it out")
    with terminated_like_interrupted():
        if options.simulate:
            result = simulate_demo(
                run, Console(emoji=False, markup=False), drop=options.drop, checkpoints=options.checkpoints
            )
        else:
            result = run_demo(run, Console(emoji=False, markup=False), checkpoints=options.checkpoints)
    write_json(options.json, as_json(result))


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

    from splitsec.parties import config, running
    from splitsec.parties.events import to_json_lines, to_terminal
    from splitsec.parties.settings import read_settings

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
    from splitsec.parties import config, running
    from splitsec.parties.settings import read_settings

    settings = read_settings(options.config, config.ClientConfig)
    options.party = settings.name
    running.run_client(settings, base, report)
