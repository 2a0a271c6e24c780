"""The server counts rounds against the budget, lost ones too."""

from __future__ import annotations

import pytest

from splitsec import Privacy, RunSettings
from splitsec.errors import BudgetError
from splitsec.training.server.privacy import Budgeting

SETTINGS = RunSettings(
    clients=("a", "b", "c"), epochs=3, batch_size=32, steps_per_round=1, privacy=Privacy(epsilon=3.0, delta=1e-4)
)


def test_without_a_budget_every_round_is_taken() -> None:
    budget = Budgeting(RunSettings(clients=("a", "b")), {})
    assert budget.begin(samples=1000, number=0, rounds=7) == 7
    assert budget.plan is None
    assert budget.tail is None
    assert budget.facts(more=True) == {}


def test_rounds_are_counted_across_a_restart_and_the_budget_ends() -> None:
    budget = Budgeting(SETTINGS, {})
    assert budget.begin(samples=960, number=0, rounds=30) == 30
    assert budget.plan is not None
    for _ in range(10):
        budget.end_round()
    again = Budgeting(SETTINGS, budget.facts(more=True))
    # The round that had begun is charged as well, so one fewer is left.
    assert again.begin(samples=960, number=10, rounds=30) == 29
    spent = Budgeting(SETTINGS, {**budget.facts(more=False), "charged": 30 * budget.plan.steps})
    with pytest.raises(BudgetError, match="is spent"):
        spent.begin(samples=960, number=10, rounds=30)
