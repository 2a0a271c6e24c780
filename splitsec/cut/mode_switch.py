"""Calls whose arguments depend on the mode, such as F.dropout(x, training=self.training)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn


@dataclass(frozen=True)
class _Argument:
    """The place of an argument of a `ByMode`, in the values that it is called with."""

    index: int


class ByMode(nn.Module):
    """A function or method of a tensor with other arguments in training than in eval mode.

    Args:
        target: a function, or a method's name.
        training, evaluation: its positional and named arguments in each mode; nodes stand for the values of `forward`.
        inputs: those nodes, in the order of the values of `forward`.
    """

    def __init__(
        self,
        target: Any,
        training: tuple[tuple[Any, ...], Mapping[str, Any]],
        evaluation: tuple[tuple[Any, ...], Mapping[str, Any]],
        inputs: list[fx.Node],
    ) -> None:
        super().__init__()
        self.target = target
        # torch.fx knows no such argument; only `_filled` sees it.
        places: dict[fx.Node, Any] = {node: _Argument(index) for index, node in enumerate(inputs)}
        self._training = fx.map_arg(training, places.__getitem__)
        self._evaluation = fx.map_arg(evaluation, places.__getitem__)

    def in_eval(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return its positional and named arguments in eval mode."""
        args, kwargs = _filled(self._evaluation, values)
        return args, kwargs

    def forward(self, *values: torch.Tensor) -> Any:
        """Call the function or method with the arguments of the module's mode."""
        args, kwargs = _filled(self._training if self.training else self._evaluation, values)
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


def _filled(value: Any, values: tuple[Any, ...]) -> Any:
    if isinstance(value, _Argument):
        return values[value.index]
    if isinstance(value, (tuple, list)):
        return type(value)(_filled(element, values) for element in value)
    if isinstance(value, Mapping):
        return {name: _filled(element, values) for name, element in value.items()}
    return value
