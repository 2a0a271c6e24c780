import io
from typing import Any

import pytest
from rich.console import Console

from splitsec.apps import stages
from splitsec.apps.stages import Course, Progress, Stage, pace_of
from splitsec.cli import progress
from splitsec.cli.progress import in_words, shown_progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (stages, progress):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_what_is_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(monkeypatch), list[Progress]()
    course = Course([Stage("one", 40, 0.5), Stage("two", 10, 1.0)], told.append)
    assert course.seconds == 30
    course.begin("one")
    assert told[-1] == Progress(Stage("one", 40, 0.5), 1, 2, 0, 30.0)
    # Twice as slow as was thought.
    for _ in range(20):
        clock.now += 1.0
        course.step()
    assert (told[-1].done, told[-1].seconds_left) == (20, 20 * 1.0 + 10)
    course.begin("two")
    assert (told[-1].number, told[-1].seconds_left) == (2, 10)


def test_steps_that_come_fast_are_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(monkeypatch), list[Progress]()
    course = Course([Stage("one", 1000)], told.append)
    course.begin("one")
    for _ in range(1000):
        clock.now += 0.001
        course.step()
    assert 8 <= len(told) <= 12
    assert told[-1].done == 1000
    # Without a guess nothing is said of what is left.
    assert told[0].seconds_left is None


def test_a_pace_is_that_of_all_steps_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def attempt(step: Any) -> None:
        for seconds in (9.0, 0.25, 0.25, 7.0):
            clock.now += seconds
            step()

    assert pace_of(attempt) == 0.25


@pytest.mark.parametrize("terminal", [False, True])
def test_where_there_is_no_terminal_lines_come_now_and_then(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(monkeypatch), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, emoji=False, markup=False)
    with shown_progress("audit", console) as report:
        course = Course([Stage("inverse network at 'pool'", 200, 0.5), Stage("x", 1, 1.0)], report)
        course.begin("inverse network at 'pool'")
        for _ in range(100):
            clock.now += 0.5
            course.step()
        course.begin("x")
    if terminal:
        assert "x (2 of 2)" in out.getvalue()
        return
    assert out.getvalue().splitlines() == [
        "audit: inverse network at 'pool' (1 of 2); about 2 minutes left",
        "audit: inverse network at 'pool' (1 of 2), step 40 of 200; about 81 s left",
        "audit: inverse network at 'pool' (1 of 2), step 80 of 200; about 61 s left",
        "audit: x (2 of 2); about 1 s left",
    ]


def test_times_in_words() -> None:
    assert [in_words(one) for one in (0.2, 59.6, 130, 1900)] == [
        "about 1 s",
        "about 60 s",
        "about 2 minutes",
        "about 32 minutes",
    ]
