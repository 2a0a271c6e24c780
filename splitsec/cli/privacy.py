"""`splitsec privacy`, `splitsec pate` and `splitsec audit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from splitsec.cli.common import Commands, check_writable, write_json
from splitsec.errors import ConfigError


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add what measures privacy."""
    privacy = commands.add_parser("privacy", help="what a run has cost in privacy")
    questions = privacy.add_subparsers(title="questions", required=True, metavar="WHAT")
    ledger = questions.add_parser("ledger", parents=[common], help="each client's ledger of a run")
    ledger.add_argument("run_directory", type=Path, metavar="RUN", help="a run's directory, or one ledger's file")
    ledger.add_argument("--json", type=Path, metavar="FILE", help="also write the ledgers to this file")
    ledger.add_argument("--plot", type=Path, metavar="FILE", help="draw epsilon against accuracy (png, pdf, svg)")
    ledger.set_defaults(run=_ledger)


def _ledger(options: argparse.Namespace) -> None:
    check_writable(options.json)
    check_writable(options.plot)
    import msgspec
    from rich.console import Console
    from rich.table import Table

    from splitsec.choosing.picture import check_format
    from splitsec.privacy.ledger import find_ledgers, plot_ledgers

    if options.plot is not None:
        check_format(options.plot)
    if not options.run_directory.exists():
        raise ConfigError(f"there is no {options.run_directory}")
    ledgers = find_ledgers(options.run_directory)
    console = Console()
    if not console.is_terminal:
        console.width = 130
    for one in ledgers:
        budget = f", budget epsilon {one.budget:g}" if one.budget else ""
        table = Table(title=f"{one.client}, run {one.run[:8]}{budget} at delta {one.delta:g} ({one.accountant})")
        for heading in ("mechanism", "protects", "noise", "rate", "steps", "epsilon", "with"):
            table.add_column(heading, justify="right" if heading in ("noise", "rate", "steps", "epsilon") else "left")
        for entry in one.entries:
            table.add_row(
                entry.mechanism,
                entry.covers,
                f"{entry.noise:.3f}" if entry.noise else "none",
                f"{entry.rate:.4g}",
                str(entry.steps),
                "no promise" if entry.epsilon is None else f"{entry.epsilon:.3f}",
                ", ".join(f"{name} {value:.4g}" for name, value in entry.parameters.items()),
            )
        console.print(table)
    if options.plot is not None:
        plot_ledgers(ledgers, options.plot)
        console.print(f"epsilon against accuracy: {options.plot}")
    write_json(options.json, msgspec.to_builtins(ledgers))
