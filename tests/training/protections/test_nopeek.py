"""NoPeek's term lowers what an activation says of its input."""

from __future__ import annotations

import torch
from torch import nn

from splitsec.privacy.activation_guard import distance_correlation
from splitsec.training.protections.nopeek import NoPeek


def test_steps_on_the_term_alone_lower_the_correlation() -> None:
    torch.manual_seed(0)
    front, rows = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(64, 4)
    optimizer = torch.optim.Adam(front.parameters(), lr=0.01)
    before = float(distance_correlation(rows, front(rows)))
    protection = NoPeek(1.0)
    for _ in range(50):
        term = protection.term(rows, front(rows))
        assert term is not None
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert float(distance_correlation(rows, front(rows))) < before - 0.1


def test_a_single_row_has_no_term() -> None:
    assert NoPeek(1.0).term(torch.zeros(1, 4), torch.zeros(1, 2)) is None
