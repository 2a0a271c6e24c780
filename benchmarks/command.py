"""What every benchmark's command has in common: options from a dataclass, one line for an error, a wide table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from rich.console import Console

from splitsec.cli.common import terminated_like_interrupted
from splitsec.errors import ConfigError, SplitsecError
from splitsec.settings.options import parse_options

OptionsT = TypeVar("OptionsT")
# Of a table that goes to a file.
FILE_WIDTH = 130


def run_command(
    body: Callable[[OptionsT, Sequence[str]], None],
    options: type[OptionsT],
    *,
    name: str,
    description: str,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Read a benchmark's options and run it; exit as the commands of splitsec do.

    Args:
        body: takes the options, and the arguments as they were given.
        options: a dataclass of settings.
        name: of the module in `benchmarks`.
        description: for `--help`.
        arguments: those of this process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parse_options(options, words, prog=f"python -m benchmarks.{name}", description=description)
    try:
        with terminated_like_interrupted():
            body(parsed, words)
    except SplitsecError as error:
        print(f"splitsec: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("splitsec: interrupted; everything that was started has been ended", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def console() -> Console:
    """Return a console that is wide enough for a table where the output is a file."""
    made = Console(emoji=False, markup=False)
    if not made.is_terminal:
        made.width = FILE_WIDTH
    return made


def words(text: str) -> list[str]:
    """Split what is separated by commas."""
    return [word for word in text.split(",") if word]


def decimals(text: str, option: str) -> list[float]:
    """Read numbers with commas between them; raises `ConfigError` that names the option."""
    try:
        return [float(word) for word in words(text)]
    except ValueError:
        raise ConfigError(f"{option} {text}: write numbers with commas between them") from None
