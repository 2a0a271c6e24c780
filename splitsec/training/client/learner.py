"""What a client brings into a run: its segments, its data, and what it keeps from one welcome to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from splitsec.cut.origin import Origin, origin_of, set_origin, values_digest
from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.events import Report
from splitsec.randomness import RunRandomness
from splitsec.training.aggregation.masking import OneTime
from splitsec.training.client.checkpoint import ClientCheckpoints
from splitsec.training.flat_state import Combinable


@dataclass
class Learner:
    """What a client brings into a run, the same in every welcome to it.

    Attributes:
        name: of the client.
        cut: the name of the cut.
        segments: the front and, of a U, the head; trained in place.
        state: their values.
        first: those values before the run, float64.
        data: the client's rows or columns.
        kept: its checkpoints.
        randomness: of the order of rows and of dropout.
        ledgers: the directory of its privacy ledgers; None keeps none.
        epsilon_limit: what all runs together may spend of any record; 0 for no limit.
        report: told what has happened.
        used: which masks and pads it has used.
    """

    name: str
    cut: str
    segments: Sequence[nn.Module] = field(repr=False)
    state: Combinable = field(repr=False)
    data: Part | Columns = field(repr=False)
    kept: ClientCheckpoints = field(repr=False)
    randomness: RunRandomness = field(repr=False)
    ledgers: Path | None = None
    epsilon_limit: float = 0.0
    report: Report = field(repr=False, kw_only=True)
    used: OneTime = field(default_factory=OneTime, repr=False)
    first: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.first = self.state.flat()

    def remember_training(self) -> None:
        """Let the segments say that their values are those of a run that is not over."""
        self._remember(Origin(architecture=self._architecture))

    def remember_run(self, *, mark: str, run: str, rounds: int) -> None:
        """Let the segments say which run they come from, and which tail they belong to."""
        items = (item for segment in self.segments for item in segment.state_dict().items())
        self._remember(Origin(mark, self._architecture, run, rounds, values_digest(items)))

    @property
    def _architecture(self) -> str:
        return origin_of(self.segments[0]).architecture

    def _remember(self, origin: Origin) -> None:
        for segment in self.segments:
            set_origin(segment, origin)
