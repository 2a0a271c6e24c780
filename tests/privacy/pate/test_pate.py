"""What votes cost, and that on shares they come to what they come to in plain."""

import math

import numpy as np
import pytest
import torch
from opacus.accountants.analysis.rdp import get_privacy_spent
from scipy import stats
from torch.nn import functional as F

from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.context import Context
from splitsec.mpc.in_process import run_pair
from splitsec.privacy.pate.accounting import ORDERS, Confidence, _renyi, cost_of_votes, log_other_label
from splitsec.privacy.pate.voting import BITS, Ballot, blank, cast, confident, winners

QUIET = Confidence(threshold=3.0, threshold_noise=1e-3, vote_noise=1e-3)


def test_the_data_independent_cost_is_that_of_gaussians() -> None:
    votes = torch.tensor([[5, 5, 0]] * 7)
    confidence = Confidence(3.0, 4.0, 2.0)
    found = cost_of_votes(votes, [True] * 4 + [False] * 3, confidence, delta=1e-5)
    renyi = 7 * ORDERS / (2 * 4.0**2) + 4 * ORDERS / 2.0**2
    assert found.epsilon_data_independent == pytest.approx(get_privacy_spent(orders=ORDERS, rdp=renyi, delta=1e-5)[0])


def test_agreement_is_cheap_and_disagreement_is_not() -> None:
    confidence = Confidence(20.0, 5.0, 5.0)
    agreed = cost_of_votes(torch.tensor([[50, 0, 0]] * 100), [True] * 100, confidence, delta=1e-5)
    split = cost_of_votes(torch.tensor([[25, 25, 0]] * 100), [True] * 100, confidence, delta=1e-5)
    assert agreed.epsilon < 1 < agreed.epsilon_data_independent
    assert split.epsilon > 0.8 * split.epsilon_data_independent
    assert split.epsilon <= split.epsilon_data_independent + 1e-9


def test_the_data_dependent_bound_holds_for_the_mechanism_itself() -> None:
    """The Renyi divergence of two neighbouring histograms' answers, by counting, is below the bound."""
    std, order = 2.0, 4.0
    votes, moved = torch.tensor([[9, 1, 0]]), torch.tensor([[8, 2, 0]])
    draws = np.random.default_rng(0).normal(0, std, (400_000, 3))
    shares = []
    for row in (votes, moved):
        label = (row.double().numpy() + draws).argmax(1)
        shares.append(np.bincount(label, minlength=3) / len(label))
    divergence = math.log((shares[0] ** order * shares[1] ** (1 - order)).sum()) / (order - 1)
    unlikely = log_other_label(torch.tensor([9.0, 1.0, 0.0]).double(), std)
    at = int(np.abs(ORDERS - order).argmin())
    bound = _renyi(unlikely, std)[at]
    assert divergence <= bound + 1e-3
    assert bound < order / std**2
    # The control: a bound for answers that hardly ever change does not hold.
    assert divergence > _renyi(math.log(1e-12), std)[at]


def test_near_certainty_still_costs() -> None:
    """Probabilities that a double cannot hold are not zero: the bound has a limited number of orders."""
    certain = cost_of_votes(torch.tensor([[200, 0]] * 200), [True] * 200, Confidence(100.0, 2.0, 2.0), delta=1e-5)
    assert 0.05 < certain.epsilon < 1
    refused = cost_of_votes(torch.tensor([[10, 0]] * 500), [False] * 500, Confidence(50.0, 4.5, 2.0), delta=1e-5)
    assert refused.epsilon > 0.3
    assert cost_of_votes(torch.empty(0, 3), [], QUIET, delta=1e-5).epsilon == 0


def test_noise_and_thresholds_that_promise_nothing() -> None:
    for bad in (Confidence(1.0, 0.0, 1.0), Confidence(1.0, 1.0, float("inf")), Confidence(11.0, 1.0, 1.0)):
        with pytest.raises(ConfigError):
            bad.check(10)
    with pytest.raises(ConfigError, match="above 1/100"):
        cost_of_votes(torch.tensor([[1, 0]]), [True], QUIET, delta=0.1, records=100)
    with pytest.raises(MessageError, match="40 classes"):
        cast(torch.zeros(3, dtype=torch.int64), 40, QUIET, teachers=10)


def _sums(labels: torch.Tensor, confidence: Confidence, classes: int) -> list[Ballot]:
    ballots = [cast(part, classes, confidence, teachers=len(labels)) for part in labels]
    sums = [blank(classes, labels.shape[1])] * 2
    for pair in ballots:
        sums = [total + part for total, part in zip(sums, pair, strict=True)]
    return sums


def _held(sums: list[Ballot], context: Context) -> Ballot:
    return blank(*sums[0].votes.shape) if context.planning else sums[context.rank]


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_votes_on_shares_are_votes(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (7, 60), generator=generator)
    counts = F.one_hot(labels, classes).sum(0)
    sums = _sums(labels, QUIET, classes)
    reached = run_pair(lambda context, _: confident(context, _held(sums, context), 2.5))
    assert torch.equal(reached.server[0], reached.client[0])
    assert torch.equal(reached.server[0].bool(), counts.max(1).values >= 3)
    opened = run_pair(lambda context, _: winners(context, _held(sums, context)))
    # Only the client gets labels; where counts are equal the tiny noise decides.
    assert opened.server == [None]
    won = counts.gather(1, opened.client[0][:, None]).flatten()
    assert torch.equal(won, counts.max(1).values)


def test_a_share_of_votes_is_uniform_and_a_sum_of_them_is_not() -> None:
    labels = torch.zeros(4000, dtype=torch.int64)
    mine, theirs = cast(labels, 2, QUIET, teachers=2)
    for one in (mine.votes, theirs.votes):
        assert abs(float((one < 0).double().mean()) - 0.5) < 0.05
    assert torch.equal(
        mine.votes + theirs.votes, torch.stack([torch.full((4000,), 1 << BITS), torch.zeros(4000).long()])
    )


def test_the_noise_of_all_teachers_together() -> None:
    confidence = Confidence(3.0, 4.0, 2.0)
    sums = _sums(torch.zeros(5, 3000, dtype=torch.int64), confidence, 2)
    noise = (sums[0].vote_noise + sums[1].vote_noise).double() / (1 << BITS)
    assert float(noise.std()) == pytest.approx(2.0, rel=0.05)
    assert float((sums[0].threshold_noise + sums[1].threshold_noise).double().std() / (1 << BITS)) == pytest.approx(
        4.0, rel=0.06
    )


def test_what_the_parties_see_is_the_same_whatever_the_votes() -> None:
    """The server's view of unanimous votes and of split ones cannot be told apart by their bytes."""
    views = []
    for labels in (torch.zeros(6, 400, dtype=torch.int64), torch.arange(6)[:, None].repeat(1, 400) % 2):
        sums = _sums(labels, QUIET, 2)
        views.append(run_pair(lambda context, _, held=sums: winners(context, _held(held, context))).seen[0])
    words = [one.view(torch.uint8).long() for one in views]
    table = np.stack([torch.bincount(word, minlength=256).numpy() for word in words])
    assert stats.chi2_contingency(table).pvalue > 1e-6
