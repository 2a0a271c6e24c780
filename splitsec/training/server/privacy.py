"""The server's side of a run's privacy budget: how it is kept, and how much of it rounds have taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from splitsec.errors import BudgetError
from splitsec.privacy.plan import PrivacyPlan, make_plan
from splitsec.settings.privacy import GradientNoise
from splitsec.settings.run import RunSettings
from splitsec.training.protections.base import protections_of


class Budgeting:
    """Plans a run's noise and counts what is spent.

    Args:
        kept: the facts of a checkpoint, to go on from.

    Raises:
        ConfigError: the run's protection is not known here.

    Attributes:
        plan: None without a budget, and before the run begins.
    """

    def __init__(self, settings: RunSettings, kept: Mapping[str, Any]) -> None:
        # Here too, so that a name that nobody knows is refused before clients come.
        protections_of(settings.privacy, 1)
        self._settings = settings
        self.plan = msgspec.convert(kept.get("plan"), PrivacyPlan | None)
        # Steps of the plan's mechanism so far, those of rounds that were lost among them.
        self._charged = int(kept.get("charged", 0))

    def begin(self, *, samples: int, number: int, rounds: int) -> int:
        """Find the noise that keeps the budget; returns after which of the `rounds` the run must end.

        Args:
            samples: of all clients together.
            number: the round that comes next.

        Raises:
            ConfigError: delta does not fit the samples.
            BudgetError: no round is left.
        """
        settings = self._settings
        rules = settings.privacy
        if not rules.epsilon or not rounds:
            return rounds
        if self.plan is None:
            self.plan = make_plan(
                rules,
                samples=samples,
                clients=len(settings.clients),
                batch_size=settings.batch_size,
                every=settings.steps_per_round,
                rounds=rounds,
            )
        steps = self.plan.steps
        allowed = self.plan.allowed(rules, steps * rounds + self._charged)
        left = max(0, allowed - self._charged) // steps
        if not left and number < rounds:
            raise BudgetError(
                f"the budget of epsilon {rules.epsilon:g} at delta {rules.delta:g} is spent: {self._charged} of "
                f"{allowed} steps are taken, and a round has {steps}; predict with the model as it is, or begin a new "
                "run with a larger epsilon"
            )
        return min(rounds, number + left)

    @property
    def tail(self) -> GradientNoise | None:
        """Return how the server's steps are made; None without a budget."""
        return None if self.plan is None else self.plan.tail(self._settings.privacy)

    def expected(self, samples: Mapping[str, int]) -> dict[str, float]:
        """Return how many samples of each client are in a step on average; nothing where they are not sampled."""
        return {} if self.plan is None else {name: self.plan.rate * count for name, count in samples.items()}

    def end_round(self) -> None:
        """Count a round that has been taken."""
        self._charged += 0 if self.plan is None else self.plan.steps

    def facts(self, *, more: bool) -> dict[str, Any]:
        """Return what a checkpoint keeps.

        A round that begins now (`more`) is charged, whether it comes to its end or not.
        """
        if self.plan is None:
            return {}
        return {"plan": msgspec.to_builtins(self.plan), "charged": self._charged + (self.plan.steps if more else 0)}
