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
from splitsec.settings.privacy import check_delta

# Ten deviations of it and the counts themselves stay below 2^13 votes.
MOST_NOISE = 400.0
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
        if max(self.threshold_noise, self.vote_noise) > MOST_NOISE:
            raise ConfigError(f"noise of more than {MOST_NOISE:g} votes would leave the range of the counts on shares")
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
    """Return the epsilon that queries have cost.

    Args:
        votes: counts, (queries, classes).
        answered: of each query.
        records: of all teachers, to hold delta against.
    """
    check_delta(delta, records)
    counts = votes.double().sort(dim=1, descending=True).values
    dependent, independent = np.zeros_like(ORDERS), np.zeros_like(ORDERS)
    # A vote that moves changes the highest count by 1: noise s on it is like noise s * sqrt(2) on two counts.
    threshold_std = confidence.threshold_noise * math.sqrt(2)
    for row, gave in zip(counts, answered, strict=True):
        # Of answering and of not answering, the logarithm of the less likely one's chance.
        above = (row[0] - confidence.threshold) / confidence.threshold_noise
        dependent += _renyi(float(torch.special.log_ndtr(-above.abs())), threshold_std)
        independent += ORDERS / threshold_std**2
        if gave:
            dependent += _renyi(log_other_label(row, confidence.vote_noise), confidence.vote_noise)
            independent += ORDERS / confidence.vote_noise**2
    if not len(counts):
        return Cost(0.0, 0.0, delta)
    return Cost(_epsilon(dependent, delta), _epsilon(independent, delta), delta)


def log_other_label(counts: torch.Tensor, std: float) -> float:
    """Return the logarithm of a bound of the chance that noise makes another label than the first the highest.

    Args:
        counts: descending, float64 (classes,).
    """
    return float(torch.special.log_ndtr((counts[1:] - counts[0]) / (math.sqrt(2) * std)).logsumexp(0))


def _renyi(log_unlikely: float, std: float) -> NDArray[np.float64]:
    """Return the Renyi divergence, by `ORDERS`, of a step that misses its likely outcome with a probability.

    `log_unlikely` is the logarithm of a bound of that probability.
    """
    plain: NDArray[np.float64] = ORDERS / std**2
    if not -math.inf < log_unlikely < 0:
        return plain
    second = std * math.sqrt(-log_unlikely)
    first = second + 1
    if second <= 1:
        return plain
    eps1, eps2 = first / std**2, second / std**2
    log_bound = (second - 1) * eps2 - second * math.log(first / (first - 1) * second / (second - 1))
    if log_unlikely > log_bound or log_unlikely + eps2 >= 0:
        return plain
    log_likely = math.log1p(-math.exp(log_unlikely))
    log_a = log_likely - math.log1p(-math.exp((log_unlikely + eps2) * (second - 1) / second))
    log_b = eps1 - log_unlikely / (first - 1)
    divergence = np.logaddexp(log_likely + (ORDERS - 1) * log_a, log_unlikely + (ORDERS - 1) * log_b) / (ORDERS - 1)
    return np.where((first >= ORDERS) & (divergence >= 0), np.minimum(divergence, plain), plain)


def _epsilon(renyi: NDArray[np.float64], delta: float) -> float:
    """Return epsilon by Opacus's conversion.

    B. Balle et al., "Hypothesis testing interpretations and Renyi differential privacy", AISTATS 2020, theorem 21.
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    return max(0.0, float(get_privacy_spent(orders=ORDERS, rdp=renyi, delta=delta)[0]))
