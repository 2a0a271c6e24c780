"""`splitsec demo`: all parties on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from splitsec.cli.common import Commands, check_writable, terminated_like_interrupted, write_json

if TYPE_CHECKING:
    from splitsec.apps.demo import DemoOptions

DESCRIPTION = "Train, combine and predict encrypted on this machine, in five processes."


def add_commands(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the demo to the list of commands; its options are made from the settings, see `read_demo`."""
    commands.add_parser("demo", parents=[common], help=DESCRIPTION[0].lower() + DESCRIPTION[1:-1])


def read_demo(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the demo's options as the other commands': `run` carries it out."""
    from splitsec.apps.demo import DemoOptions
    from splitsec.settings.options import parse_options

    options = parse_options(DemoOptions, arguments, prog="splitsec demo", description=DESCRIPTION)
    return argparse.Namespace(run=lambda _namespace: _demo(options), verbose=options.verbose)


def _demo(options: DemoOptions) -> None:
    check_writable(options.json)
    from rich.console import Console

    from splitsec.apps.demo import as_json, run_demo, simulate_demo
    from splitsec.errors import ConfigError

    if options.drop and not options.simulate:
        raise ConfigError("--drop needs --simulate: virtual clients drop out as told, processes when they are ended")
    if options.simulate and options.predictions is not None:
        raise ConfigError("--predictions does nothing with --simulate, where predictions are plain; leave it out")
    console = Console(emoji=False, markup=False)
    with terminated_like_interrupted():
        if options.simulate:
            result = simulate_demo(options, console, drop=options.drop, checkpoints=options.checkpoints)
        else:
            result = run_demo(options, console, checkpoints=options.checkpoints)
    write_json(options.json, as_json(result))
