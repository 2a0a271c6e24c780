"""Tensors of messages, for tests."""

from __future__ import annotations

import torch

from splitsec.transport import NamedTensors
from splitsec.transport.tensor_specs import DTYPES, Several, Tensors, TensorSpec

# For messages of tests that carry any tensors.
ANY_TENSORS = Tensors(parts=Several(TensorSpec(tuple(DTYPES.values()))))


def all_of(tensors: NamedTensors) -> list[torch.Tensor]:
    """Return all tensors of a message, those of groups too."""
    flat: list[torch.Tensor] = []
    for value in tensors.values():
        flat += value if isinstance(value, list) else [] if value is None else [value]
    return flat


def of_batch(activation: torch.Tensor, labels: torch.Tensor | None = None) -> NamedTensors:
    """Return the tensors of a `Batch`, without compression."""
    return {"activation": [activation]} if labels is None else {"activation": [activation], "labels": labels}
