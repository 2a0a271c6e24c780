"""Shows how far a command has come: a bar on a terminal, now and then a line elsewhere. Both go to standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from splitsec.apps.stages import Progress, Report

# Between two lines where there is no terminal.
LINE_SECONDS = 20.0


def in_words(seconds: float) -> str:
    """About how long, such as `about 2 minutes`."""
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} minutes"


@contextlib.contextmanager
def shown_progress(command: str, console: Console | None = None) -> Iterator[Report]:
    """Give what to report progress to until the block ends.

    Args:
        command: begins each line where there is no terminal.
        console: where to show it; None for standard error.
    """
    console = _quiet() if console is None else console
    if not console.is_terminal:
        yield _Lines(command, console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None, left="")

        def show(progress: Progress) -> None:
            bars.update(
                task,
                description=f"{progress.stage.title} ({progress.number} of {progress.count})",
                total=progress.stage.steps,
                completed=progress.done,
                left=_left(progress),
            )

        yield show


@contextlib.contextmanager
def shown_status(command: str, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """Give what to tell in words what is being done, until the block ends; for work whose steps nobody counts."""
    console = _quiet() if console is None else console
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    told = [-LINE_SECONDS]

    def tell(line: str) -> None:
        if time.monotonic() - told[0] >= LINE_SECONDS:
            told[0] = time.monotonic()
            console.print(f"{command}: {line}", soft_wrap=True)

    yield tell


def _quiet() -> Console:
    return Console(stderr=True, emoji=False, markup=False, highlight=False)


class _Lines:
    """Writes a line at the beginning of each stage, and one every 20 seconds."""

    def __init__(self, command: str, console: Console) -> None:
        self._command = command
        self._console = console
        self._number = 0
        self._at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.done and now - self._at < LINE_SECONDS:
            return
        self._at = now
        steps = f", step {progress.done} of {progress.stage.steps}" if progress.done else ""
        line = f"{self._command}: {progress.stage.title} ({progress.number} of {progress.count}){steps}"
        left = _left(progress)
        self._console.print(f"{line}; {left}" if left else line, soft_wrap=True)


def _left(progress: Progress) -> str:
    return "" if progress.seconds_left is None else f"{in_words(progress.seconds_left)} left"
