"""Optimisation of the input: images are changed until the front makes of them what was sent.

Z. He, T. Zhang, R. Lee, "Model inversion attacks against collaborative inference", ACSAC 2019, section 4: the attacker
has the front, as the server of a run with averaged fronts does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from splitsec.privacy.audit.base import ATTACKS, Attack, Finding, Progress, Steps, Target, compare_images

STEPS = Steps(quick=200, thorough=400)
MOST_VICTIMS = 32


def optimise(
    front: Callable[[torch.Tensor], torch.Tensor],
    seen: torch.Tensor,
    start: torch.Tensor,
    *,
    low: float,
    high: float,
    steps: int = STEPS.thorough,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Find the images whose activations are nearest to those seen, with a little total variation.

    Args:
        front: in eval mode.
        start: the images to begin with, one a row of `seen`.
        low, high: the range of images.
        on_step: called after each step.
    """
    images = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.05 * (high - low))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scale = seen.pow(2).mean().clamp(min=1e-12)
    for _ in range(steps):
        optimizer.zero_grad()
        distance = functional.mse_loss(front(images), seen) / scale
        variation = (images[..., 1:, :] - images[..., :-1, :]).abs().mean() + (
            images[..., 1:] - images[..., :-1]
        ).abs().mean()
        (distance + 1e-3 * variation).backward(inputs=[images])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(low, high)
        on_step()
    return images.detach()


class Optimisation(Attack):
    """Begins with the mean image and optimises each victim's."""

    position = 20

    def stages(self, target: Target) -> Mapping[str, int]:
        return {"optimisation": STEPS.at(target.effort)}

    def run(self, target: Target, progress: Progress) -> Finding:
        public, victims = target.rows.public, target.victims
        few = min(MOST_VICTIMS, len(victims))
        sent, guess = target.sent(victims)[:few], target.guess[:few]
        progress.begin("optimisation")
        images = optimise(
            target.front,
            sent,
            guess,
            low=float(public.min()),
            high=float(public.max()),
            steps=STEPS.at(target.effort),
            on_step=progress.step,
        )
        return compare_images("optimisation", victims[:few], images, guess)


ATTACKS.register("optimise")(Optimisation())
