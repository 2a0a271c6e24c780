"""What an engine is to a benchmark, and the registry of all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from splitsec.apps.workload import Record, Workload
from splitsec.registry import Registry


class Engine(Protocol):
    """A running engine on one workload."""

    def run(self, *, count: bool) -> None:
        """Predict once; `count` is False for a warm-up."""

    def record(self) -> Record:
        """Return medians and exact counts of the counted runs."""


# Starts an engine for a workload, on these processors; everything is ended on leaving.
Start: TypeAlias = Callable[[Workload, set[int]], AbstractContextManager[Engine]]
ENGINES: Registry[Start] = Registry("engine", package="benchmarks.engines")
