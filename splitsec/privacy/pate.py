"""PATE: what it costs to learn from the votes of teachers, each trained on data of its own.

Confident-GNMax: N. Papernot, S. Song, I. Mironov, A. Raghunathan, K. Talwar, U. Erlingsson, "Scalable private learning
with PATE", ICLR 2018, algorithm 1. A query is answered if its highest count of votes with Gaussian noise reaches a
threshold; the answer is the label with the highest count under other noise. One record is in one teacher's data, so it
moves one vote.

Two figures of Renyi differential privacy are made of it. The data-independent one holds whatever the votes are
(propositions 7 and 8 of the paper). The data-dependent one is smaller where teachers agree (theorem 6 and proposition
10); it is computed from the votes, so it is itself not to be published as it stands (section 4 of the paper).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from splitsec.errors import ConfigError
from splitsec.privacy.rules import check_delta

ORDERS = np.concatenate([np.arange(1.05, 11, 0.05), np.arange(11, 256)])


@dataclass(frozen=True)
class Confidence:
    """The mechanism's parameters, in votes.

    Attributes:
        threshold: of the highest count.
        threshold_noise: standard deviation of the noise on it.
        vote_noise: of the noise on each count.
    """

    threshold: float
    threshold_noise: float
    vote_noise: float

    def check(self, teachers: int) -> None:
        """Raise `ConfigError` for parameters that answer nothing or promise nothing."""
        if not (0 < self.threshold_noise < math.inf and 0 < self.vote_noise < math.inf):
            raise ConfigError("noise on votes must be finite and above 0: without it nothing is promised")
        if not 0 <= self.threshold <= teachers:
            raise ConfigError(f"a threshold of {self.threshold:g} votes, with {teachers} teachers: 0 to {teachers}")


@dataclass(frozen=True)
class Cost:
    """Epsilon at `delta` of all queries together."""

    epsilon: float
    epsilon_data_independent: float
    delta: float


def cost_of_votes(
    votes: torch.Tensor, answered: Sequence[bool], confidence: Confidence, *, delta: float, records: int | None = None
) -> Cost:
    """What queries have cost.

    Args:
        votes: counts, (queries, classes).
        answered: of each query.
        records: of all teachers, to hold delta against.
    """
    check_delta(delta, records)
    counts = np.sort(votes.double().numpy(), axis=1)[:, ::-1]
    dependent, independent = np.zeros_like(ORDERS), np.zeros_like(ORDERS)
    # A vote that moves changes the highest count by 1: noise s on it is like noise s * sqrt(2) on two counts.
    threshold_std = confidence.threshold_noise * math.sqrt(2)
    for row, gave in zip(counts, answered, strict=True):
        below = _upper_tail((row[0] - confidence.threshold) / confidence.threshold_noise)
        dependent += _renyi(min(below, 1 - below), threshold_std)
        independent += ORDERS / threshold_std**2
        if gave:
            others = sum(_upper_tail((row[0] - other) / (math.sqrt(2) * confidence.vote_noise)) for other in row[1:])
            dependent += _renyi(others, confidence.vote_noise)
            independent += ORDERS / confidence.vote_noise**2
    return Cost(_epsilon(dependent, delta), _epsilon(independent, delta), delta)


def _upper_tail(deviations: float) -> float:
    """The chance that a normal value is more than so many standard deviations above its mean."""
    return 0.5 * math.erfc(deviations / math.sqrt(2))


def _renyi(unlikely: float, std: float) -> NDArray[np.float64]:
    """Renyi divergence by `ORDERS` of a step whose likely outcome is missed with at most this probability."""
    plain: NDArray[np.float64] = ORDERS / std**2
    if not 0 < unlikely < 1:
        return plain if unlikely > 0 else np.zeros_like(ORDERS)
    second = std * math.sqrt(-math.log(unlikely))
    first = second + 1
    if second <= 1:
        return plain
    eps1, eps2 = first / std**2, second / std**2
    log_bound = (second - 1) * eps2 - second * math.log(first / (first - 1) * second / (second - 1))
    if math.log(unlikely) > log_bound or unlikely * math.exp(eps2) >= 1:
        return plain
    log_a = math.log1p(-unlikely) - math.log1p(-((unlikely * math.exp(eps2)) ** ((second - 1) / second)))
    log_b = eps1 - math.log(unlikely) / (first - 1)
    made = np.logaddexp(math.log1p(-unlikely) + (ORDERS - 1) * log_a, math.log(unlikely) + (ORDERS - 1) * log_b) / (
        ORDERS - 1
    )
    return np.where((first >= ORDERS) & (made >= 0), np.minimum(made, plain), plain)


def _epsilon(renyi: NDArray[np.float64], delta: float) -> float:
    """Opacus's conversion: B. Balle et al., "Hypothesis testing interpretations and Renyi differential privacy",
    AISTATS 2020, theorem 21."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    if not renyi.any():
        return 0.0
    return float(get_privacy_spent(orders=ORDERS, rdp=renyi, delta=delta)[0])
