"""The command line."""

from __future__ import annotations

import argparse
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from splitsec.cli import bench, demo, model, party, privacy
from splitsec.errors import SplitsecError, class_and_line
from splitsec.version import __version__


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 for success, an error's own code, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding lacks must not end a command: it is written as an escape.
            stream.reconfigure(errors="backslashreplace")
    options = _read(list(sys.argv[1:] if arguments is None else arguments))
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if getattr(options, "inform", False) and not options.verbose:
        # A party runs for long and with nobody watching: its log says what it has done, not only what went wrong.
        logging.getLogger("splitsec").setLevel(logging.INFO)
    code = 0
    try:
        options.run(options)
    except SplitsecError as error:
        code = _fail(options, error, str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _fail(options, None, "interrupted; everything that was started has been ended", 130)
    except Exception as error:  # the last line of defence: one line for people, the trace on request
        code = _fail(options, error, f"unexpected {class_and_line(error)}; run again with --verbose for the trace", 1)
    sys.exit(code)


def _read(arguments: list[str]) -> argparse.Namespace:
    if arguments[:1] == ["demo"]:
        return demo.read_demo(arguments[1:])
    return _parser().parse_args(arguments)


def _fail(options: argparse.Namespace, error: BaseException | None, message: str, code: int) -> int:
    if options.verbose and error is not None:
        traceback.print_exception(error)
    if getattr(options, "events", "text") == "json":
        from splitsec.events import Failed, to_json_lines

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

    for module in (demo, party, model, privacy, bench):
        module.add_commands(commands, common)
    return parser
