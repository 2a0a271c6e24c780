"""How far a long command has come, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeAlias

# Called after each step.
Step: TypeAlias = Callable[[], None]
# Between two reports of steps.
REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        title: what it is, for the user.
        steps: how many it has.
        seconds: what a step is thought to take.
    """

    title: str
    steps: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where the work is.

    Attributes:
        stage: the one that runs.
        number, count: which of how many it is, from 1 on.
        done: steps of it that are over.
        seconds_left: of this stage and those to come; None while nothing is known.
    """

    stage: Stage
    number: int
    count: int
    done: int
    seconds_left: float | None


Report: TypeAlias = Callable[[Progress], None]


def ignore(_progress: Progress) -> None:
    """Report to nobody."""


class Course:
    """Goes through stages in order: `begin` each, then call `step` after each of its steps."""

    def __init__(self, stages: Sequence[Stage], report: Report) -> None:
        self._stages = list(stages)
        self._report = report
        self._at = -1
        self._done = 0
        self._began = self._told = 0.0

    @property
    def seconds(self) -> float:
        """Return what all stages together are thought to take."""
        return sum(stage.steps * stage.seconds for stage in self._stages)

    def begin(self, title: str) -> None:
        """Note that the stage of this title begins; those before it are over."""
        self._at = next(at for at, stage in enumerate(self._stages) if at > self._at and stage.title == title)
        self._done = 0
        self._began = time.monotonic()
        self._tell()

    def step(self) -> None:
        """Note that a step of the stage is over."""
        self._done += 1
        if time.monotonic() - self._told >= REPORT_SECONDS or self._done == self._stages[self._at].steps:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        stage = self._stages[self._at]
        # As soon as a twentieth is over its own pace says more than any guess before.
        pace = (self._told - self._began) / self._done if self._done * 20 >= stage.steps else stage.seconds
        left = pace * (stage.steps - self._done)
        left += sum(later.steps * later.seconds for later in self._stages[self._at + 1 :])
        self._report(Progress(stage, self._at + 1, len(self._stages), self._done, left if self.seconds else None))


class Trial:
    """Times the steps of a trial: `begin` each stage, then call `step` after each of its steps."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}
        self._title = ""

    def begin(self, title: str) -> None:
        """Note that a stage begins."""
        self._title = title
        self._times[title] = [time.monotonic()]

    def step(self) -> None:
        """Note that a step of the stage is over."""
        self._times[self._title].append(time.monotonic())

    def pace(self, title: str) -> float:
        """Return the seconds that a step of a stage takes: the median of all but the first."""
        times = self._times[title]
        steps = [later - earlier for earlier, later in pairwise(times[1:])]
        return median(steps) if steps else times[-1] - times[0]


def pace_of(attempt: Callable[[Step], object]) -> float:
    """Return the seconds that a step takes, from a trial of at least three steps: the median of all but the first."""
    trial = Trial()
    trial.begin("")
    attempt(trial.step)
    return trial.pace("")
