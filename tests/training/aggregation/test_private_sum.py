"""The private sum: one step of Adam with the sum of the clients' gradients."""

from __future__ import annotations

import torch

from splitsec import Privacy, RunSettings
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.training.aggregation.masking import mask_upload
from splitsec.training.aggregation.private_sum import PrivateSumAtServer

SETTINGS = RunSettings(clients=("a", "b"), privacy=Privacy(epsilon=3.0), steps_per_round=1, learning_rate=0.1)


def _step(rule: PrivateSumAtServer, gradients: list[torch.Tensor]) -> torch.Tensor:
    seeds = [fresh_seed() for _ in gradients]
    uploads = {
        str(index): mask_upload(gradient, weight=1, seed=seed, round_number=0)
        for index, (gradient, seed) in enumerate(zip(gradients, seeds, strict=True))
    }
    masks = torch.stack([Stream(seed, 0).ring((3,)) for seed in seeds]).sum(0)
    return rule.combine(uploads, masks, {}, learning_rate=0.1, expected=4.0)


def _adam(gradients: list[torch.Tensor], steps: int) -> torch.Tensor:
    moved = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([moved], lr=0.1)
    for _ in range(steps):
        moved.grad = torch.stack(gradients).sum(0) / 4
        optimizer.step()
    return moved.detach()


def test_a_step_is_that_of_adam_with_the_sum() -> None:
    gradients = [torch.tensor(values, dtype=torch.float64) for values in ([1.0, -2.0, 0.5], [3.0, 1.0, 0.25])]
    rule = PrivateSumAtServer(SETTINGS)
    assert torch.allclose(_step(rule, gradients), _adam(gradients, 1), atol=1e-4)
    # One that goes on from what was kept takes the second step, and not a first one.
    again = PrivateSumAtServer(SETTINGS)
    again.restore(rule.tensors())
    second = _step(again, gradients)
    assert torch.allclose(second, _adam(gradients, 2), atol=1e-4)
    # The control.
    assert not torch.allclose(second, _adam(gradients, 1), atol=1e-4)
