"""Loading the weights of a segment."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from splitsec.cut.origin import COUNTER
from splitsec.errors import CutError


def load_segment(segment: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict into a segment; raises `CutError` naming keys or shapes that do not fit."""
    own = segment.state_dict()
    # Counters of batches are not in every file of weights, and do nothing in prediction.
    uncounted = {key: torch.zeros_like(own[key]) for key in own if key.endswith(COUNTER) and key not in state}
    state = {**state, **uncounted}
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or extra or wrong:
        problems = [
            f"{label} {', '.join(keys[:5])}"
            for label, keys in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
            if keys
        ]
        raise CutError(f"the weights do not fit the segment: {'; '.join(problems)}")
    segment.load_state_dict(dict(state))


def load_part(segment: nn.Module, whole: Mapping[str, torch.Tensor]) -> None:
    """Load a segment's part of a state dict that may hold more; raises `CutError` as `load_segment` does."""
    load_segment(segment, {key: whole[key] for key in segment.state_dict() if key in whole})
