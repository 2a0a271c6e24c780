"""Figures of a trained model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splitsec.apps.evaluate import auc_of, judge_plain, share

LOGITS = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
LABELS = torch.tensor([1, 0, 1, 1])


def test_a_share_is_a_fraction() -> None:
    assert share(torch.tensor([True, False, True, True])) == 0.75


def test_the_area_is_one_for_a_perfect_order_and_half_for_none() -> None:
    assert auc_of(LOGITS, torch.tensor([1, 0, 1, 0])) == pytest.approx(1.0)
    assert auc_of(torch.zeros(4, 2), LABELS) == pytest.approx(0.5)
    # More classes, or only one of two, have none.
    assert auc_of(torch.zeros(4, 3), LABELS) is None
    assert auc_of(LOGITS, torch.ones(4)) is None


def test_of_a_simulation_nothing_is_encrypted() -> None:
    model = nn.Identity()
    judged = judge_plain(model, (LOGITS,), LABELS)
    assert judged.accuracy_plain == judged.accuracy_held_out == 0.75
    assert (judged.accuracy_encrypted, judged.rounds, judged.encrypted_predictions) == (None, None, 0)
