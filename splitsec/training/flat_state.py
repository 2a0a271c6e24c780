"""What of a client's segments is combined, as one vector, and how buffers are.

Parameters come first, then floating-point buffers. The statistics of a batch norm are pooled: clients send the second
moment in the place of the variance, so that the average is the variance of all clients' rows together (law of total
variance) and not the mean of their variances, which is too small where their means differ. Other floating-point
buffers are averaged. Whole numbers, such as batch norm's count of batches, stay with their client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from splitsec.cut import load_part
from splitsec.errors import MessageError


class Combinable:
    """The values of segments that are combined.

    Attributes:
        parameters: how many values are parameters; they come first.
        values: how many there are.
        description: names and shapes, the same for clients that can be combined.
        trained: which values are of parameters that are trained, bool (values,).
    """

    def __init__(self, segments: Sequence[nn.Module]) -> None:
        self._segments = segments
        trained = {name for segment in segments for name, _ in segment.named_parameters()}
        state = self._state()
        real = [name for name, tensor in state.items() if tensor.is_floating_point()]
        self._names = [name for name in real if name in trained] + [name for name in real if name not in trained]
        self.parameters = sum(state[name].numel() for name in real if name in trained)
        self.values = sum(state[name].numel() for name in real)
        self.description = tuple((name, tuple(state[name].shape)) for name in self._names)
        learning = {name for segment in segments for name, value in segment.named_parameters() if value.requires_grad}
        parts = [torch.full((state[name].numel(),), name in learning) for name in self._names]
        self.trained = torch.cat([*parts, torch.empty(0, dtype=torch.bool)])
        self._pooled = {
            name: name.removesuffix("running_var") + "running_mean"
            for name in self._names
            if name.endswith("running_var") and name.removesuffix("running_var") + "running_mean" in state
        }

    def flat(self) -> torch.Tensor:
        """Return the values now, float64 (values,)."""
        state = {name: tensor.detach().double() for name, tensor in self._state().items()}
        for variance, mean in self._pooled.items():
            state[variance] = state[variance] + state[mean] ** 2
        return torch.cat([state[name].flatten() for name in self._names] + [torch.empty(0, dtype=torch.float64)])

    def arranged(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Values by name in the order of `flat`, float64, with zeros for those that are not given."""
        state = self._state()
        parts = [
            values[name].double() if name in values else torch.zeros(state[name].shape).double() for name in self._names
        ]
        return torch.cat([part.flatten() for part in parts] + [torch.empty(0, dtype=torch.float64)])

    def load(self, flat: torch.Tensor) -> None:
        """Give the segments the values of a vector that `flat` made, or of an average of such."""
        if flat.numel() != self.values:
            raise MessageError(f"the combined segments have {flat.numel()} values, this client's {self.values}")
        state = self._state()
        parts = flat.split([state[name].numel() for name in self._names])
        values = {name: part.view(state[name].shape) for name, part in zip(self._names, parts, strict=True)}
        for variance, mean in self._pooled.items():
            values[variance] = (values[variance] - values[mean] ** 2).clamp(min=0)
        state.update({name: value.to(state[name].dtype) for name, value in values.items()})
        for segment in self._segments:
            load_part(segment, state)

    def _state(self) -> dict[str, torch.Tensor]:
        return {key: value for segment in self._segments for key, value in segment.state_dict().items()}
