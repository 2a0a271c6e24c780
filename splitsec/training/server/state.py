"""What the parts of a server's run share: where the run is, and what it is made of."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from splitsec.cut.origin import origin_of
from splitsec.events import Report, ignore
from splitsec.randomness import OwnRandomness
from splitsec.settings.run import RunSettings
from splitsec.settings.timeouts import Timeouts
from splitsec.training.aggregation import ServerAggregation, rule_of
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.layouts import Layout, layout_of
from splitsec.training.layouts.base import StepGatherer
from splitsec.training.messages import Combined, Hello
from splitsec.training.server.checkpoint import ServerCheckpoints
from splitsec.training.server.privacy import Budgeting
from splitsec.training.server.round import Round
from splitsec.training.tail import TailTrainer
from splitsec.training.tail_per_client import ClientTails


@dataclass
class RunState:
    """Where a run is.

    Attributes:
        id: of the run, for the dealer and for checkpoints.
        rounds: how many the run has; 0 before it is known.
        samples: of all clients together at the run's beginning; 0 before.
        finished: whether the last round is over.
        start: of the seeds that are in use; a dealer that was started again gets another.
        members: what each client said of itself, by name.
        number: the round that is running, from 0 on; None before the first.
        first_round: the round with which this start of the server began.
        mark: of the tail and the combined segments that belong together.
        round: who trains in the round that is running.
        returning: the clients that take part again from the next round on.
        progress: when a client last moved the run forward, in seconds; None before the first look.
        last_end: the end of the last round that is over, for a client that comes back after it.
    """

    id: str
    rounds: int
    samples: int
    finished: bool
    start: str = field(default_factory=lambda: secrets.token_hex(16))
    members: dict[str, Hello] = field(default_factory=dict)
    number: int | None = None
    first_round: int = 0
    mark: str = ""
    round: Round = field(default_factory=lambda: Round(0))
    returning: set[str] = field(default_factory=set)
    progress: float | None = None
    last_end: Combined | None = None

    @property
    def present(self) -> list[str]:
        """Return the clients that hear of the round's end; who vanished after its upload and is back is named once."""
        return list(dict.fromkeys([*self.round.active, *self.round.idle, *sorted(self.returning)]))

    @property
    def running(self) -> int:
        """Return the number of the round that is running."""
        assert self.number is not None
        return self.number


@dataclass(frozen=True)
class RunParts:
    """What a run is made of; see `make_parts`."""

    tail: nn.Module = field(repr=False)
    architecture: str
    cut: str
    settings: RunSettings
    timeouts: Timeouts
    layout: Layout
    rule: ServerAggregation
    trainer: TailTrainer
    steps: StepGatherer
    kept: ServerCheckpoints
    budget: Budgeting
    report: Report

    @property
    def minimum(self) -> int:
        """Return the fewest clients that a round needs."""
        return len(self.settings.clients) if self.layout.aligns_rows else self.rule.minimum

    def save(self, state: RunState) -> None:
        """Write the checkpoint of a round's beginning; raises `ConfigError` where it cannot be written."""
        facts: Mapping[str, object] = {
            "run": state.id,
            "rounds": state.rounds,
            "samples": state.samples,
            "mark": state.mark,
            **self.budget.facts(more=state.running < state.rounds),
        }
        self.kept.save(state.running, facts, self.tail, self.trainer, self.rule)


def make_parts(
    tail: nn.Module,
    *,
    cut: str,
    settings: RunSettings,
    timeouts: Timeouts,
    checkpoints: Checkpoints | None = None,
    seed: int | None = None,
    report: Report = ignore,
) -> RunParts:
    """Make what a run needs from its settings.

    Args:
        tail: trained in place.
        timeouts: how long the others wait for a client, and for all to come.
        checkpoints: where to keep and find them; None keeps none.
        seed: of dropout and the like in the tail; None for a random one.

    Raises:
        ConfigError: the checkpoints are of another run, or the settings do not fit the tail.
    """
    # Dropout from a seed that others know would tell them how many rows are in a step.
    randomness = OwnRandomness(None if settings.privacy.epsilon else seed)
    trainer = (ClientTails if settings.privacy.by_client else TailTrainer)(
        tail, learning_rate=settings.learning_rate, randomness=randomness
    )
    if settings.privacy.epsilon:
        from splitsec.privacy.dp_sgd import check_private

        check_private(tail)
    layout = layout_of(settings, cut)
    kept = ServerCheckpoints(checkpoints, cut=cut, settings=settings)
    return RunParts(
        tail=tail,
        architecture=origin_of(tail).architecture,
        cut=cut,
        settings=settings,
        timeouts=timeouts,
        layout=layout,
        rule=rule_of(settings).server(settings),
        trainer=trainer,
        steps=layout.gatherer(trainer, cut=cut, settings=settings),
        kept=kept,
        budget=Budgeting(settings, kept.facts),
        report=report,
    )
