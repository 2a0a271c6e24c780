"""Several values that cross one cut, packed side by side into one tensor."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from splitsec.cut.state import as_it_was
from splitsec.errors import CutError


@dataclass(frozen=True)
class Row:
    """Shape and dtype of one sample's part of a value (N, ...)."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Return how many numbers it has."""
        return math.prod(self.shape)


def rows_of(traced: fx.GraphModule, nodes: Sequence[fx.Node], sample: torch.Tensor | None) -> list[Row]:
    """Return what a sample has of each node's value; an exported graph knows it itself.

    Raises:
        CutError: it cannot be told, or a value has no row for each sample.
    """
    if all("row" in node.meta for node in nodes):
        return [node.meta["row"] for node in nodes]
    if sample is None:
        raise CutError("several values cross, whose shapes a sample of the model's inputs must say: give one")
    run = _Values(traced, set(nodes))
    with as_it_was(traced, values=True), torch.no_grad():
        traced.eval()
        run.run(sample)
    rows = []
    for node in nodes:
        value = run.values[node]
        if not isinstance(value, torch.Tensor) or value.shape[:1] != sample.shape[:1]:
            raise CutError(f"'{node.name}' would cross, which is no tensor with a row for each sample")
        rows.append(Row(tuple(value.shape[1:]), value.dtype))
    return rows


class _Values(fx.Interpreter):
    """A run of a model that keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._wanted = wanted
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and keep its value if it is wanted."""
        value = super().run_node(n)
        if n in self._wanted:
            self.values[n] = value
        return value


def pack(graph: fx.Graph, values: Sequence[fx.Node], rows: Sequence[Row]) -> fx.Node:
    """Add to a graph what packs values into real numbers (N, numbers of all); return that."""
    dtype = next((row.dtype for row in rows if row.dtype.is_floating_point), torch.float32)
    flat = []
    for value, row in zip(values, rows, strict=True):
        real = value if row.dtype.is_floating_point else graph.call_method("to", (value, dtype))
        flat.append(graph.call_method(*(("flatten", (real, 1)) if row.shape else ("unsqueeze", (real, 1)))))
    return graph.call_function(torch.cat, (flat, 1))


def unpack(graph: fx.Graph, packed: fx.Node, rows: Sequence[Row]) -> list[fx.Node]:
    """Add to a graph what takes packed values apart; return each as it was."""
    values, start = [], 0
    for row in rows:
        part = graph.call_function(operator.getitem, (packed, (slice(None), slice(start, start + row.size))))
        start += row.size
        if len(row.shape) != 1:
            part = graph.call_method(*(("unflatten", (part, 1, row.shape)) if row.shape else ("squeeze", (part, 1))))
        if row.dtype == torch.bool:
            # Which has an encrypted form.
            part = graph.call_function(torch.gt, (part, 0.5))
        elif not row.dtype.is_floating_point:
            part = graph.call_method("to", (part, row.dtype))
        values.append(part)
    return values
