"""Where a segment's values come from, so that segments that do not belong together are never put together.

A tail answers with wrong labels, and no error, to the activations of a front that was not trained with it. So every
segment remembers its origin: in memory, in the file it is saved to, and when it enters a session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

MARK_DIGITS = 32
COUNTER = "num_batches_tracked"
_KEY = "origin"


@dataclass(frozen=True)
class Origin:
    """Where the values of a segment come from.

    Attributes:
        mark: equal for segments that belong together, 32 hexadecimal digits; empty where nothing is known. After a run
            it stands for the tail and the combined segments of its last round; before, for the whole model's values.
        architecture: a digest of the names and shapes of the whole model's values; empty where that is not known.
        run: the run that trained the segment, 32 hexadecimal digits; empty if none did.
        rounds: how many rounds it was trained for in that run.
        digest: of the values of this party's segments when they got their mark; empty where they are not compared.
    """

    mark: str = ""
    architecture: str = ""
    run: str = ""
    rounds: int = 0
    digest: str = field(default="", compare=False)

    @property
    def described(self) -> str:
        """Return in words where the values come from."""
        if self.run:
            return f"run {self.run[:8]} after {self.rounds} round{'s' * (self.rounds != 1)}"
        return f"the model with values {self.mark[:8]}" if self.mark else "an unknown model"


def origin_of(segment: nn.Module) -> Origin:
    """Return the origin that `set_origin` gave a segment; an empty one if none was given."""
    origin = getattr(segment, "meta", {}).get(_KEY)
    return origin if isinstance(origin, Origin) else Origin()


def set_origin(segment: nn.Module, origin: Origin) -> None:
    """Let a segment remember its origin, also when it is copied."""
    # A GraphModule has a dictionary `meta`, the one thing that survives its being copied.
    vars(segment).setdefault("meta", {})[_KEY] = origin


def segments_digest(segments: Iterable[nn.Module]) -> str:
    """Return a digest of all values of one party's segments; empty where they have none yet, on the meta device."""
    values = [item for segment in segments for item in segment.state_dict().items()]
    return "" if any(value.is_meta for _, value in values) else values_digest(values)


def whole_origin(state: Mapping[str, torch.Tensor]) -> Origin:
    """Return the origin of segments that are cut from a whole model with this state dict."""
    # Counters of batches are not in every file of weights, and do nothing in prediction.
    state = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    mark = "" if any(value.is_meta for value in state.values()) else values_digest(state.items())
    return Origin(mark=mark, architecture=shapes_digest(shapes))


def values_digest(values: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a digest of named tensors, 32 hexadecimal digits; the order of the names does not matter."""
    total = hashlib.sha256()
    for name, value in sorted(values, key=lambda item: item[0]):
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:MARK_DIGITS]


def shapes_digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a digest of the names and shapes of a model's values, 32 hexadecimal digits."""
    return hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:MARK_DIGITS]
