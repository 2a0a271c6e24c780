"""Votes in shares: neither party alone knows one, and both together count them."""

from __future__ import annotations

import pytest
import torch

from splitsec.errors import MessageError
from splitsec.privacy.pate.accounting import Confidence
from splitsec.privacy.pate.voting import BITS, MOST_CLASSES, blank, cast, only

QUIET = Confidence(threshold=1.0, threshold_noise=1e-3, vote_noise=1e-3)
LABELS = torch.tensor([0, 2, 1])


def test_both_shares_together_are_one_vote_a_query() -> None:
    server, client = cast(LABELS, 3, QUIET, teachers=2)
    votes = (server + client).votes
    assert torch.equal(votes, torch.nn.functional.one_hot(LABELS, 3).t() << BITS)


def test_a_share_alone_says_nothing() -> None:
    """The same vote has other shares each time: the control is that their sum is the same."""
    first, second = (cast(LABELS, 3, QUIET, teachers=2) for _ in range(2))
    assert not torch.equal(first[0].votes, second[0].votes)
    assert not torch.equal(first[1].votes, second[1].votes)
    assert torch.equal((first[0] + first[1]).votes, (second[0] + second[1]).votes)


def test_questions_are_selected_by_number() -> None:
    ballot = cast(LABELS, 3, QUIET, teachers=2)[0]
    part = only(ballot, torch.tensor([2, 0]))
    assert torch.equal(part.votes, ballot.votes[:, [2, 0]])
    assert part.threshold_noise.shape == (2,)
    assert blank(3, 2).votes.shape == part.votes.shape


@pytest.mark.parametrize(("classes", "teachers"), [(1, 2), (MOST_CLASSES + 1, 2), (3, 1)])
def test_more_than_can_be_counted_is_refused(classes: int, teachers: int) -> None:
    with pytest.raises(MessageError):
        cast(torch.zeros(1, dtype=torch.int64), classes, QUIET, teachers=teachers)
