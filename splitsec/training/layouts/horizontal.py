"""Horizontal: clients hold rows with their labels, and send both activation and labels to the server."""

from __future__ import annotations

from collections.abc import Iterator

from splitsec.training.layouts.base import LAYOUTS, Arrived, Layout, StepGatherer
from splitsec.training.step import StepResult


class LabelledSteps(StepGatherer):
    """Every client sends an activation and its labels, and gets a gradient."""

    labelled = True

    def _check_batch(self, arrived: Arrived) -> None:
        assert arrived.labels is not None
        self._trainer.check(arrived.tensor, arrived.labels)

    def _step(self, waiting: dict[str, Arrived]) -> Iterator[tuple[str, StepResult]]:
        batches = {
            name: (arrived.tensor, arrived.labels) for name, arrived in waiting.items() if arrived.labels is not None
        }
        for name, result in self._trainer.step(batches).items():
            self.book.add([(result, len(result.gradient))])
            self.samples += len(result.gradient)
            yield name, result


class Horizontal(Layout):
    """Clients with rows and labels."""

    gatherer = LabelledSteps


LAYOUTS.register("horizontal")(Horizontal())
