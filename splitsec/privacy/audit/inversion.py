"""Reconstructing inputs from what crosses the cut.

Z. He, T. Zhang, R. Lee, "Model inversion attacks against collaborative inference", ACSAC 2019: a trained inverse
network (section 5; the attacker can ask the front) and optimisation of the input (section 4; the attacker has the
front, as the server of a run with averaged fronts does).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class Inverse(nn.Module):
    """A small network from activations to images."""

    def __init__(self, taken: tuple[int, ...], image: tuple[int, ...], *, width: int = 32) -> None:
        super().__init__()
        channels, height, breadth = image
        self._side = (height, breadth)
        if len(taken) == 3 and taken[1] > 1 and taken[2] > 1:
            self.first: nn.Module = nn.Conv2d(taken[0], 2 * width, 3, padding=1)
        else:
            # From a vector: a coarse picture that is made finer.
            low = (max(1, math.ceil(height / 4)), max(1, math.ceil(breadth / 4)))
            count = 2 * width * low[0] * low[1]
            self.first = nn.Sequential(
                nn.Flatten(), nn.Linear(math.prod(taken), count), nn.Unflatten(1, (2 * width, *low))
            )
        self.second = nn.Conv2d(2 * width, width, 3, padding=1)
        self.third = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        halfway = [max(one, math.ceil(side / 2)) for one, side in zip(x.shape[-2:], self._side, strict=True)]
        x = self.second(F.interpolate(x, size=halfway, mode="nearest")).relu()
        x = self.third(F.interpolate(x, size=self._side, mode="nearest")).relu()
        made: torch.Tensor = self.last(x)
        return made


def invert(
    seen: torch.Tensor,
    images: torch.Tensor,
    *,
    steps: int = 1500,
    batch_size: int = 64,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Train an inverse network on the attacker's own rows; the best one on a tenth of them, kept apart, is taken.

    Args:
        seen: what the server would see of them, (N, ...).
        images: (N, channels, height, width).
        on_step: called after each step.

    Returns:
        What makes images of what is seen; within the range of the attacker's images.
    """
    torch.manual_seed(seed)
    mean, spread = seen.mean(0), seen.std().clamp(min=1e-6)
    network = Inverse(tuple(seen.shape[1:]), tuple(images.shape[1:]))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    low, high = float(images.min()), float(images.max())

    def guess(what: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            parts = [network((part - mean) / spread) for part in what.split(256)]
        return torch.cat(parts).clamp(low, high)

    apart = max(1, len(seen) // 10)
    checked, wanted = seen[-apart:][:500], images[-apart:][:500]
    # Before any training the guess is the mean image.
    usual = images[:-apart].mean(0, keepdim=True)
    best, kept = float(F.mse_loss(usual.expand_as(wanted), wanted)), None
    for step in range(1, steps + 1):
        rows = torch.randint(len(seen) - apart, (min(batch_size, len(seen)),), generator=order)
        optimizer.zero_grad()
        F.mse_loss(network((seen[rows] - mean) / spread), images[rows]).backward()
        optimizer.step()
        schedule.step()
        on_step()
        if step % 50 == 0 or step == steps:
            error = float(F.mse_loss(guess(checked), wanted))
            if error < best:
                best, kept = error, {name: one.clone() for name, one in network.state_dict().items()}
    if kept is None:
        return lambda what: usual.expand(len(what), *usual.shape[1:]).clone()
    network.load_state_dict(kept)
    return guess


def optimise(
    front: Callable[[torch.Tensor], torch.Tensor],
    seen: torch.Tensor,
    start: torch.Tensor,
    *,
    low: float,
    high: float,
    steps: int = 400,
    smoothness: float = 1e-3,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """The images whose activations are nearest to those seen, with a little total variation.

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
        apart = F.mse_loss(front(images), seen) / scale
        rough = (images[..., 1:, :] - images[..., :-1, :]).abs().mean() + (
            images[..., 1:] - images[..., :-1]
        ).abs().mean()
        (apart + smoothness * rough).backward(inputs=[images])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(low, high)
        on_step()
    return images.detach()


def ridge_error(seen: torch.Tensor, images: torch.Tensor, *, fitted: float = 0.6) -> float:
    """How much of the images' variance the best linear reconstruction leaves, from 0 (all is known) to about 1.

    A quick measure: ridge regression with the kernel of the activations, the penalty chosen among a few on rows that
    take no part in the result (A. Hoerl and R. Kennard, "Ridge regression", Technometrics 1970).
    """
    count = len(seen)
    fit, check = int(count * fitted), int(count * (fitted + (1 - fitted) / 2))
    x, y = seen.flatten(1).double(), images.flatten(1).double()
    mean_x, mean_y = x[:fit].mean(0), y[:fit].mean(0)
    x, y = x - mean_x, y - mean_y
    kernel = x[:fit] @ x[:fit].T
    values, vectors = torch.linalg.eigh(kernel)
    turned = vectors.T @ y[:fit]
    across = x[fit:] @ x[:fit].T @ vectors
    best, left = math.inf, 1.0
    for penalty in torch.logspace(-6, 1, 8).double() * values.max().clamp(min=1e-12):
        guess = across @ (turned / (values.clamp(min=0) + penalty)[:, None])
        errors = ((guess - y[fit:]) ** 2).sum(1)
        chosen = float(errors[: check - fit].mean())
        if chosen < best:
            best = chosen
            left = float(errors[check - fit :].mean() / (y[check:] ** 2).sum(1).mean().clamp(min=1e-12))
    return left
