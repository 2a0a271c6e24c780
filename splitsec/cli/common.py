"""What several commands share."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from splitsec.errors import ConfigError
from splitsec.files import whole_file

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers of at least 1 with commas between them; raises `ConfigError` that names the option."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{option} {text}: write whole numbers of at least 1, with commas between them")
    return numbers


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that `finally` blocks run and nothing is left behind."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield


def end_with_input() -> None:
    """End this party when its standard input closes, as it does when the process that started it is gone.

    Only for who asks for it: services, containers and `nohup` give a standard input that is at its end from the start.
    """

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def check_writable(path: Path | None) -> None:
    """Raise `ConfigError` for a file that cannot be written: before a long run, not after it."""
    if path is not None and path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a directory; name a file in it")
    if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ConfigError(f"cannot write {path}: {path.parent} is not a directory that can be written to")


def write_json(path: Path | None, content: object) -> None:
    """Write a file as a whole or not at all."""
    if path is not None:
        with whole_file(path) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")
