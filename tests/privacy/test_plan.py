"""The plan of a budget: which noise keeps it, and for how many steps."""

from __future__ import annotations

import pytest

from splitsec.errors import ConfigError
from splitsec.privacy.plan import make_plan
from splitsec.settings.privacy import Privacy

BY_RECORD = Privacy(epsilon=3.0, delta=1e-3)
BY_CLIENT = Privacy(epsilon=3.0, delta=1e-2, unit="client")
RUN = {"samples": 600, "clients": 3, "batch_size": 20, "rounds": 5}


def test_an_epoch_is_one_pass_over_the_records() -> None:
    plan = make_plan(BY_RECORD, every=None, **RUN)
    assert (plan.per_epoch, plan.steps, plan.rate) == (10, 10, 0.1)
    assert make_plan(BY_RECORD, every=4, **RUN).steps == 4


def test_the_noise_keeps_the_budget_and_no_less_would() -> None:
    plan = make_plan(BY_RECORD, every=None, **RUN)
    assert plan.epsilon(BY_RECORD, 50) <= 3.0
    assert plan.allowed(BY_RECORD, 50) == 50
    # The control: with a tenth less noise the same steps spend more than the budget.
    louder = make_plan(Privacy(epsilon=3.0, delta=1e-3, noise=plan.noise * 0.9), every=None, **RUN)
    assert louder.epsilon(BY_RECORD, 50) > 3.0
    assert louder.allowed(BY_RECORD, 50) < 50


def test_by_client_each_round_is_one_step_of_all() -> None:
    plan = make_plan(BY_CLIENT, every=None, samples=600, clients=50, batch_size=20, rounds=5)
    assert (plan.rate, plan.steps) == (1.0, 1)


def test_a_delta_that_protects_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="above 1/600, with 600 records"):
        make_plan(Privacy(epsilon=3.0, delta=1e-2), every=None, **RUN)
    with pytest.raises(ConfigError, match="without rounds spends no budget"):
        make_plan(BY_RECORD, every=None, samples=600, clients=3, batch_size=20, rounds=0)
