"""Rules of privacy: what they say of each side of the cut, and which promise nothing."""

from __future__ import annotations

import math

import pytest

from splitsec.errors import ConfigError
from splitsec.settings.privacy import Privacy, check_delta, check_epsilon, check_privacy


def test_both_sides_of_the_cut_together_have_the_clip() -> None:
    rules = Privacy(epsilon=3.0, clip=2.0, front_fraction=0.6, local=True)
    assert math.hypot(rules.front_clip, rules.tail_clip) == pytest.approx(2.0)
    assert rules.front_clip == pytest.approx(1.2)


def test_steps_are_summed_by_record_unless_each_client_adds_all_the_noise() -> None:
    assert Privacy(epsilon=3.0).sums_steps
    assert not Privacy(epsilon=3.0, local=True).sums_steps
    assert not Privacy(epsilon=3.0, unit="client").sums_steps
    assert not Privacy().by_record


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Privacy(activation_noise=1.0), "set activation_clip too"),
        (Privacy(noise=1.0), "without a budget promises nothing"),
        (Privacy(local=True), "belongs to a budget by record"),
        (Privacy(clip=2.0), "clip = 2 does nothing without a budget"),
        (Privacy(epsilon=3.0, front_fraction=0.4), "does nothing where both sides of the cut clip together"),
        (Privacy(epsilon=3.0, nopeek=0.5), "mixes the rows of a batch"),
    ],
)
def test_rules_that_promise_nothing_are_refused(rules: Privacy, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_privacy(rules)
    check_privacy(Privacy(epsilon=3.0))


def test_a_budget_is_a_number() -> None:
    for epsilon in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="is no budget"):
            check_epsilon(epsilon)
    check_epsilon(3.0)
    with pytest.raises(ConfigError, match="write a number between 0 and 1"):
        check_delta(1.0)
    with pytest.raises(ConfigError, match="write at most 0.01"):
        check_delta(0.5, 100)
