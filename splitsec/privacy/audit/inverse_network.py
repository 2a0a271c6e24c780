"""Inverse network: a network that the attacker trains to make images of activations.

Z. He, T. Zhang, R. Lee, "Model inversion attacks against collaborative inference", ACSAC 2019, section 5: the attacker
can ask the front for the activations of images of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from splitsec.privacy.audit.base import ATTACKS, Attack, Finding, Progress, Steps, Target, compare_images

STEPS = Steps(quick=400, thorough=1500)


class Inverse(nn.Module):
    """A small network from activations to images."""

    def __init__(self, activation: tuple[int, ...], image: tuple[int, ...], *, width: int = 32) -> None:
        super().__init__()
        channels, height, breadth = image
        self._side = (height, breadth)
        if len(activation) == 3 and activation[1] > 1 and activation[2] > 1:
            self.first: nn.Module = nn.Conv2d(activation[0], 2 * width, 3, padding=1)
        else:
            # From a vector: a coarse picture that is made finer.
            low = (max(1, math.ceil(height / 4)), max(1, math.ceil(breadth / 4)))
            count = 2 * width * low[0] * low[1]
            self.first = nn.Sequential(
                nn.Flatten(), nn.Linear(math.prod(activation), count), nn.Unflatten(1, (2 * width, *low))
            )
        self.second = nn.Conv2d(2 * width, width, 3, padding=1)
        self.third = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return images (N, channels, height, width) of activations."""
        x = self.first(x).relu()
        halfway = [max(now, math.ceil(side / 2)) for now, side in zip(x.shape[-2:], self._side, strict=True)]
        x = self.second(functional.interpolate(x, size=halfway, mode="nearest")).relu()
        x = self.third(functional.interpolate(x, size=self._side, mode="nearest")).relu()
        images: torch.Tensor = self.last(x)
        return images


def invert(
    seen: torch.Tensor,
    images: torch.Tensor,
    *,
    steps: int = STEPS.thorough,
    batch_size: int = 64,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Train an inverse network on the attacker's own rows; keep its best state on a tenth of them, held out.

    Args:
        seen: what the server would see of them, (N, ...).
        images: (N, channels, height, width).
        on_step: called after each step.

    Returns:
        A function from what the server sees to images, within the range of the attacker's images.
    """
    torch.manual_seed(seed)
    mean, spread = seen.mean(0), seen.std().clamp(min=1e-6)
    network = Inverse(tuple(seen.shape[1:]), tuple(images.shape[1:]))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    low, high = float(images.min()), float(images.max())

    def reconstruct(activations: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            parts = [network((part - mean) / spread) for part in activations.split(256)]
        return torch.cat(parts).clamp(low, high)

    held_out = max(1, len(seen) // 10)
    checked, truth = seen[-held_out:][:500], images[-held_out:][:500]
    # Before any training the guess is the mean image.
    mean_image = images[:-held_out].mean(0, keepdim=True)
    least, best = float(functional.mse_loss(mean_image.expand_as(truth), truth)), None
    for step in range(1, steps + 1):
        rows = torch.randint(len(seen) - held_out, (min(batch_size, len(seen)),), generator=order)
        optimizer.zero_grad()
        functional.mse_loss(network((seen[rows] - mean) / spread), images[rows]).backward()
        optimizer.step()
        schedule.step()
        on_step()
        if step % 50 == 0 or step == steps:
            error = float(functional.mse_loss(reconstruct(checked), truth))
            if error < least:
                least, best = error, {name: value.clone() for name, value in network.state_dict().items()}
    if best is None:
        return lambda activations: mean_image.expand(len(activations), *mean_image.shape[1:]).clone()
    network.load_state_dict(best)
    return reconstruct


class InverseNetwork(Attack):
    """Trains on activations of the attacker's own images, then inverts those of the victims."""

    position = 10

    def stages(self, target: Target) -> Mapping[str, int]:
        return {"inverse network": STEPS.at(target.effort)}

    def run(self, target: Target, progress: Progress) -> Finding:
        public = target.rows.public
        seen, sent = target.sent(public), target.sent(target.victims)
        progress.begin("inverse network")
        reconstruct = invert(seen, public, steps=STEPS.at(target.effort), seed=target.seed, on_step=progress.step)
        return compare_images("inverse network", target.victims, reconstruct(sent), target.guess)


ATTACKS.register("inverse")(InverseNetwork())
