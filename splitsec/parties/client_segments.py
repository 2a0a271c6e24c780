"""The segments that a client holds: its front and, of a U, the head behind the server's tail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from splitsec.cut import Origin, check_batch, is_u, origin_of
from splitsec.cut.belonging import check_unchanged
from splitsec.cut.segment_files import save_segment
from splitsec.errors import ConfigError


@dataclass(frozen=True)
class ClientSegments:
    """A client's front and head.

    Attributes:
        front: takes the client's inputs.
        head: of a U, takes the tail's output; else None.
        cut: the name of the cut.

    Raises:
        ConfigError: the cut needs a head and there is none, or the other way round.
    """

    front: nn.Module
    head: nn.Module | None
    cut: str

    def __post_init__(self) -> None:
        if is_u(self.cut) != (self.head is not None):
            raise ConfigError(
                f"the cut '{self.cut}' {'needs a head' if self.head is None else 'has no head'}; see SplitModel"
            )

    @property
    def modules(self) -> list[nn.Module]:
        """Return the front and, of a U, the head."""
        return [self.front] if self.head is None else [self.front, self.head]

    def activation(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the front's activation of some inputs, without dropout and the like, (N, ...)."""
        self.front.eval()
        with torch.no_grad():
            activation: torch.Tensor = self.front(inputs)
        check_batch(activation, inputs, self.cut)
        return activation

    def finish(self, result: torch.Tensor) -> torch.Tensor:
        """Return the model's output from the tail's."""
        if self.head is None:
            return result
        self.head.eval()
        with torch.no_grad():
            logits: torch.Tensor = self.head(result)
        return logits

    def origin(self) -> Origin:
        """Return where the values come from; raises `ConfigError` if they have changed since."""
        origin = origin_of(self.front)
        check_unchanged(self.modules, "front")
        return origin

    def save(self, path: Path, *, party: str) -> None:
        """Write the values to a safetensors file; raises `ConfigError` if it cannot be written."""
        state = {key: value for segment in self.modules for key, value in segment.state_dict().items()}
        save_segment(path, state, role="front", party=party, cut=self.cut, origin=origin_of(self.front))
