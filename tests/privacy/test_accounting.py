import math

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from splitsec.errors import BudgetError, ConfigError
from splitsec.privacy.accounting import check_left, epsilon_of, noise_for, steps_allowed
from splitsec.privacy.plan import make_plan
from splitsec.settings.privacy import Privacy, check_delta, check_privacy


@pytest.mark.parametrize(("kind", "theirs"), [("prv", PRVAccountant), ("rdp", RDPAccountant)])
def test_epsilon_is_opacuss(kind: str, theirs: type) -> None:
    accountant = theirs()
    for _ in range(40):
        accountant.step(noise_multiplier=1.1, sample_rate=0.05)
    mine = epsilon_of([(1.1, 0.05, 40)], delta=1e-5, accountant=kind)  # type: ignore[arg-type]
    assert mine == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)


def test_the_noise_keeps_the_budget_and_is_not_much_more_than_needed() -> None:
    noise = noise_for(epsilon=3, delta=1e-5, rate=0.1, steps=200)
    assert 2.98 <= epsilon_of([(noise, 0.1, 200)], delta=1e-5) <= 3
    assert epsilon_of([(noise * 0.97, 0.1, 200)], delta=1e-5) > 3


def test_no_steps_cost_nothing_and_no_noise_everything() -> None:
    assert epsilon_of([], delta=1e-5) == 0
    assert epsilon_of([(1.0, 0.1, 0)], delta=1e-5) == 0
    assert epsilon_of([(0.0, 0.1, 1)], delta=1e-5) == math.inf


def test_the_last_step_that_keeps_the_budget() -> None:
    found = steps_allowed(noise=2.0, rate=0.1, epsilon=2.0, delta=1e-5, most=10_000)
    assert epsilon_of([(2.0, 0.1, found)], delta=1e-5) <= 2 < epsilon_of([(2.0, 0.1, found + 1)], delta=1e-5)
    assert steps_allowed(noise=2.0, rate=0.1, epsilon=2.0, delta=1e-5, most=5) == 5
    assert steps_allowed(noise=0.3, rate=1.0, epsilon=0.5, delta=1e-5, most=10) == 0


def test_a_spent_budget_says_so() -> None:
    check_left(5, spent=5, allowed=10, epsilon=3, delta=1e-5)
    with pytest.raises(BudgetError, match=r"epsilon 3 at delta 1e-05 is spent: 6 of 10 steps"):
        check_left(5, spent=6, allowed=10, epsilon=3, delta=1e-5)


@pytest.mark.parametrize("epsilon", [-1.0, float("inf"), float("nan")])
def test_an_epsilon_that_is_none(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy.epsilon = .*: write a .*number above 0"):
        check_privacy(Privacy(epsilon=epsilon))
    with pytest.raises(ConfigError, match="no budget"):
        noise_for(epsilon=0.0, delta=1e-5, rate=0.1, steps=1)


def test_delta_above_one_over_n() -> None:
    check_delta(1e-3, 1000)
    with pytest.raises(ConfigError, match="above 1/1000.*write at most 0.001"):
        check_delta(2e-3, 1000)
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            check_delta(delta)
    with pytest.raises(ConfigError, match="above 1/120, with 120 records"):
        make_plan(Privacy(epsilon=3, delta=0.01), samples=120, clients=3, batch_size=4, every=1, rounds=30)
    by_client = Privacy(epsilon=3, delta=0.4, unit="client")
    with pytest.raises(ConfigError, match="above 1/3, with 3 clients"):
        make_plan(by_client, samples=120, clients=3, batch_size=4, every=1, rounds=30)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Privacy(epsilon=1, clip=0), "privacy.clip = 0: write a number above 0"),
        (Privacy(epsilon=1, clip=float("inf")), "finite"),
        (Privacy(noise=1.0), "promises nothing"),
        (Privacy(clip=2.0), "clip = 2 does nothing without a budget"),
        (Privacy(accountant="rdp"), "accountant = .rdp. does nothing without a budget"),
        (Privacy(delta=1e-6), "delta = 1e-06 does nothing without a budget"),
        (Privacy(epsilon=3.0, front_fraction=0.3), "front_fraction = 0.3 does nothing where both sides"),
        (Privacy(activation_noise=0.1), "multiple of their clip"),
        (Privacy(activation_clip=1, activation_noise=1e-7), "hides nothing: write 1e-05 or more"),
        (Privacy(epsilon=1, nopeek=0.5), "mixes the rows"),
        (Privacy(epsilon=1, front_fraction=1.0), "between 0 and 1"),
        (Privacy(local=True), "budget by record"),
    ],
)
def test_rules_that_promise_nothing_are_refused(rules: Privacy, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_privacy(rules)


def test_the_plan_of_a_run() -> None:
    rules = Privacy(epsilon=3)
    plan = make_plan(rules, samples=1437, clients=3, batch_size=42, every=1, rounds=360)
    assert (plan.per_epoch, plan.rate, plan.steps) == (12, 1 / 12, 1)
    assert plan.epsilon(rules, 360) <= 3 < plan.epsilon(rules, 400)
    assert plan.allowed(rules, 360) == 360
