"""A copy of the tail a client: one client's data do not show before a round's end, and then clipped."""

from __future__ import annotations

import torch
from torch import nn

from splitsec.settings.privacy import GradientNoise
from splitsec.training.tail_per_client import ClientTails

GENERATOR = torch.Generator().manual_seed(4)
BATCHES = {
    name: (torch.randn(6, 4, generator=GENERATOR), torch.randint(3, (6,), generator=GENERATOR)) for name in ("a", "b")
}


def _round(batches: dict[str, tuple[torch.Tensor, torch.Tensor]], *, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights after a step, and after the round's end, both less those at the beginning."""
    torch.manual_seed(0)
    tail = nn.Linear(4, 3)
    begun = tail.weight.detach().clone()
    trainer = ClientTails(tail, learning_rate=0.5)
    trainer.protect(GradientNoise(clip=clip, std=0.0))
    trainer.begin_round(dict.fromkeys(batches, 6))
    trainer.step(batches)
    during = tail.weight.detach().clone() - begun
    trainer.end_round(dict.fromkeys(batches))
    return during, tail.weight.detach() - begun


def test_the_tail_moves_at_a_rounds_end_alone_and_no_further_than_the_clip() -> None:
    during, after = _round(BATCHES, clip=0.01)
    assert not during.any()
    assert 0 < after.norm() <= 0.01 + 1e-6


def test_control_a_wide_clip_lets_it_move_further() -> None:
    assert _round(BATCHES, clip=100.0)[1].norm() > 0.1


def test_what_a_client_gets_back_does_not_depend_on_others() -> None:
    torch.manual_seed(0)
    tail = nn.Linear(4, 3)
    gradients = []
    for batches in (BATCHES, {"a": BATCHES["a"]}):
        trainer = ClientTails(tail, learning_rate=0.5)
        trainer.begin_round(dict.fromkeys(batches, 6))
        gradients.append(trainer.step(batches)["a"].gradient)
    assert torch.equal(*gradients)
