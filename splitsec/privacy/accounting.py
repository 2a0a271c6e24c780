"""Epsilon of composed Gaussian mechanisms, by Opacus's accountants.

One step adds Gaussian noise of `noise` times the sensitivity to a sum over a Poisson sample of rate `rate`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from splitsec.errors import BudgetError, ConfigError
from splitsec.settings.privacy import Accountant, check_delta, check_epsilon

# Noise multiplier, sampling rate, steps.
History: TypeAlias = Sequence[tuple[float, float, int]]

# Above this epsilon PRV's figure is replaced by RDP's, which is larger.
MOST_EXACT = 200.0


def epsilon_of(history: History, *, delta: float, accountant: Accountant = "prv") -> float:
    """Return the epsilon of all steps together at `delta`, as Opacus gives it; infinite where there is no noise."""
    counted = [(noise, rate, steps) for noise, rate, steps in history if steps]
    if not counted:
        return 0.0
    if min(noise for noise, _, _ in counted) <= 0:
        return math.inf
    return _epsilon(tuple(counted), delta, accountant)


@lru_cache(maxsize=4096)
def _epsilon(history: tuple[tuple[float, float, int], ...], delta: float, accountant: Accountant) -> float:
    from opacus.accountants import create_accountant

    if accountant == "prv":
        # A bound that takes no time: beyond any use, the exact figure would take minutes and all memory.
        quick = create_accountant(mechanism="rdp")
        quick.history = list(history)
        with warnings.catch_warnings():
            # Few orders are enough here, and Opacus says that more would be tighter.
            warnings.simplefilter("ignore")
            bound = quick.get_epsilon(delta=delta, alphas=[2, 3, 4, 6, 8, 12, 16, 24, 32, 64])
        if bound > MOST_EXACT:
            return _epsilon(history, delta, "rdp")
    counter = create_accountant(mechanism=accountant)
    counter.history = list(history)
    with warnings.catch_warnings():
        # PRV takes logarithms of zero where the loss is minus infinity, and means it.
        warnings.simplefilter("ignore")
        return float(counter.get_epsilon(delta=delta))


def noise_for(*, epsilon: float, delta: float, rate: float, steps: int, accountant: Accountant = "prv") -> float:
    """Return the least noise multiplier, to within 0.01 of epsilon, with which `steps` steps keep the budget.

    Raises:
        ConfigError: no noise would be enough.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    return _least_noise(epsilon, delta, rate, steps, accountant)


@lru_cache(maxsize=256)
def _least_noise(epsilon: float, delta: float, rate: float, steps: int, accountant: Accountant) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            multiplier = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=min(0.01, epsilon / 100),
            )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"no noise keeps epsilon {epsilon:g} over {steps} steps at delta {delta:g}") from error
    return float(multiplier)


def steps_allowed(
    *,
    noise: float,
    rate: float,
    epsilon: float,
    delta: float,
    accountant: Accountant = "prv",
    most: int,
    before: History = (),
) -> int:
    """How many steps keep the budget, at most `most`.

    Args:
        before: what has been spent of it already.
    """

    def spent(steps: int) -> float:
        return epsilon_of([*before, (noise, rate, steps)], delta=delta, accountant=accountant)

    if spent(most) <= epsilon:
        return most
    # The largest number of steps that keeps the budget lies in [low, high).
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if spent(middle) <= epsilon:
            low = middle
        else:
            high = middle
    return low


def check_left(steps: int, *, spent: int, allowed: int, epsilon: float, delta: float) -> None:
    """Raise `BudgetError` unless `steps` steps are left of those that the budget allows."""
    if spent + steps > allowed:
        raise BudgetError(
            f"the budget of epsilon {epsilon:g} at delta {delta:g} is spent: {spent} of {allowed} steps are taken, and "
            f"{steps} more would exceed it; use the model as it is, or begin a new run with a larger epsilon"
        )
