"""The guard clips what a front returns, and its ledger counts how often each row is sent."""

from __future__ import annotations

import torch
from torch import nn

from splitsec.privacy.ledger import Ledger
from splitsec.training.protections.activation_guard import ActivationGuard


def test_rows_are_clipped_and_without_it_they_are_not() -> None:
    torch.manual_seed(0)
    front, rows = nn.Linear(4, 8), 10 * torch.randn(5, 4)
    # The control.
    assert front(rows).norm(dim=1).max() > 1
    ActivationGuard(clip=1.0, noise=0.0, samples=5).attach(front)
    assert front(rows).norm(dim=1).max() <= 1 + 1e-5


def test_the_row_that_is_sent_most_is_charged() -> None:
    ledger = Ledger("a", "0" * 32, 0.0, 1e-5, "rdp")
    guard = ActivationGuard(clip=1.0, noise=20.0, samples=4)
    guard.charge(ledger, [torch.tensor([0, 1]), torch.tensor([1, 2])])
    first = ledger.entries[0]
    assert first.steps == 2
    guard.charge(ledger, [torch.tensor([3]), torch.tensor([3])])
    # Row 3 has been sent twice by now, as row 1 before: the largest epsilon has not grown.
    assert ledger.entries[0].steps == 2
