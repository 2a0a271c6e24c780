"""Shapes of a traced model's values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


class ShapeNotes(fx.Interpreter):
    """Runs a model and notes each value's shape and dtype at its node, as `"shape"` and `"dtype"`.

    torch's own `ShapeProp` prints when an input does not fit.
    """

    def run_node(self, n: fx.Node) -> Any:
        """As torch.fx has it."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"], n.meta["dtype"] = tuple(value.shape), value.dtype
        return value
