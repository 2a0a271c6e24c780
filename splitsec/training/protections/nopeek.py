"""NoPeek: the distance correlation of inputs and activations is part of the loss.

P. Vepakomma et al., "NoPeek: information leakage reduction to share activations in distributed deep learning", ICDM
workshops 2020, section 3.
"""

from __future__ import annotations

import torch

from splitsec.privacy.activation_guard import distance_correlation
from splitsec.settings.privacy import Privacy
from splitsec.training.protections.base import PROTECTIONS, Protection


class NoPeek(Protection):
    """Adds `weight` times the distance correlation to the loss. It promises nothing."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def term(self, inputs: torch.Tensor, activation: torch.Tensor) -> torch.Tensor | None:
        # A single row has no distances.
        return self._weight * distance_correlation(inputs, activation) if len(activation) > 1 else None

    @property
    def parameters(self) -> dict[str, float]:
        return {"weight": self._weight}


@PROTECTIONS.register("nopeek")
def make_nopeek(rules: Privacy, _samples: int) -> NoPeek | None:
    """Return NoPeek with the weight of a run's rules; None where it is 0."""
    return NoPeek(rules.nopeek) if rules.nopeek else None
