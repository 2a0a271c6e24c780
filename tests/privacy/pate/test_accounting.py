"""What votes cost: parameters that promise something, and answers that are counted."""

from __future__ import annotations

import pytest
import torch

from splitsec.errors import ConfigError
from splitsec.privacy.pate.accounting import MOST_NOISE, Confidence, cost_of_votes

CONFIDENCE = Confidence(threshold=20.0, threshold_noise=5.0, vote_noise=5.0)
VOTES = torch.tensor([[30, 10, 0]] * 10)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold_noise": 0.0}, "without it nothing is promised"),
        ({"vote_noise": float("inf")}, "without it nothing is promised"),
        ({"vote_noise": MOST_NOISE * 2}, "would leave the range"),
        ({"threshold": 51.0}, "with 50 teachers: 0 to 50"),
    ],
)
def test_parameters_that_promise_nothing_are_refused(changes: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Confidence(**{**vars(CONFIDENCE), **changes}).check(50)
    CONFIDENCE.check(50)


def test_more_questions_and_more_answers_cost_more() -> None:
    few = cost_of_votes(VOTES[:5], [True] * 5, CONFIDENCE, delta=1e-5)
    many = cost_of_votes(VOTES, [True] * 10, CONFIDENCE, delta=1e-5)
    silent = cost_of_votes(VOTES, [False] * 10, CONFIDENCE, delta=1e-5)
    assert few.epsilon < many.epsilon <= many.epsilon_data_independent + 1e-9
    assert silent.epsilon_data_independent < many.epsilon_data_independent


def test_no_question_costs_nothing_and_delta_is_checked() -> None:
    assert cost_of_votes(VOTES[:0], [], CONFIDENCE, delta=1e-5).epsilon == 0.0
    with pytest.raises(ConfigError, match="above 1/10"):
        cost_of_votes(VOTES, [True] * 10, CONFIDENCE, delta=0.5, records=10)
