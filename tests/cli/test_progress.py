"""Progress in words, where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from splitsec.apps.stages import Progress, Stage
from splitsec.cli.progress import in_words, shown_progress, shown_status


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "about 1 s"), (42, "about 42 s"), (119, "about 2 minutes"), (3600, "about 60 minutes")]
)
def test_times_are_said_as_people_do(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def _lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_each_stage_has_a_line_and_its_steps_do_not() -> None:
    console = Console(file=io.StringIO(), width=80)
    with shown_progress("splitsec audit", console) as report:
        for done in range(3):
            report(Progress(Stage("guessing", 3), 1, 2, done, 30.0))
        report(Progress(Stage("judging", 1), 2, 2, 0, None))
    assert _lines(console) == [
        "splitsec audit: guessing (1 of 2); about 30 s left",
        "splitsec audit: judging (2 of 2)",
    ]


def test_a_status_is_told_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=80)
    with shown_status("splitsec pate", console) as tell:
        tell("teaching")
        tell("voting")
    assert _lines(console) == ["splitsec pate: teaching"]
