"""The activation guard: rows of activations are clipped, and noise is added to what is sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from splitsec.privacy.activation_guard import Guard
from splitsec.privacy.ledger import NOISY, Ledger
from splitsec.settings.privacy import Privacy
from splitsec.training.protections.base import PROTECTIONS, Protection


class ActivationGuard(Protection):
    """Clips and noises activations; see `privacy.activation_guard` for what that is worth.

    Args:
        clip: L2 norm of a row.
        noise: standard deviation as a multiple of the clip.
        samples: the number of the client's rows.
    """

    changes_output = True

    def __init__(self, *, clip: float, noise: float, samples: int) -> None:
        self._clip = clip
        self._noise = noise
        # How often each row has been sent.
        self._sent = torch.zeros(samples, dtype=torch.int64)

    def attach(self, front: nn.Module) -> nn.Module:
        Guard(front, clip=self._clip, noise=self._noise)
        return front

    def charge(self, ledger: Ledger, batches: Sequence[torch.Tensor]) -> None:
        before = int(self._sent.max())
        for rows in batches:
            self._sent[rows] += 1
        ledger.charge(
            NOISY if self._noise else "clip of activations",
            covers="the input of one row, not its label, in the activations that the server is sent",
            # As in `epsilon_of_activations`: a row that is replaced moves its activation by up to twice the clip.
            noise=self._noise / 2,
            rate=1.0,
            steps=int(self._sent.max()) - before,
            parameters={"clip": self._clip, "noise": self._noise},
            accountant="rdp",
        )


@PROTECTIONS.register("activation_guard")
def make_activation_guard(rules: Privacy, samples: int) -> ActivationGuard | None:
    """Return the guard of a run's rules; None without an `activation_clip`."""
    if not rules.activation_clip:
        return None
    return ActivationGuard(clip=rules.activation_clip, noise=rules.activation_noise, samples=samples)
