"""What a cut leaks in plain training, measured in moments and without training an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from splitsec.privacy.activation_guard import distance_correlation
from splitsec.privacy.audit.metrics import ridge_error

if TYPE_CHECKING:
    from splitsec.advisor.cut_costs import CutCost

# Most rows that are looked at, and most values of each activation.
ROWS, FEATURES = 512, 4096
_AT_ONCE = 32


@dataclass(frozen=True)
class Leak:
    """Two measures of what an activation says about its input.

    Attributes:
        distance_correlation: from 0 to 1 (see `privacy.activation_guard`).
        recovered: the fraction of the inputs' variance that the best linear reconstruction recovers, at least 0: a
            lower bound of what `splitsec audit` finds.
    """

    distance_correlation: float
    recovered: float


class _Collector(fx.Interpreter):
    """A run of a model that collects some values of some nodes, batch after batch."""

    def __init__(self, module: fx.GraphModule, keep: Sequence[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._keep = set(keep)
        self._chosen: dict[fx.Node, torch.Tensor] = {}
        self.values: dict[fx.Node, list[torch.Tensor]] = {node: [] for node in keep}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._keep:
            flat = value.flatten(1)
            if flat.shape[1] > FEATURES:
                if n not in self._chosen:
                    order = torch.Generator().manual_seed(0)
                    self._chosen[n] = torch.randperm(flat.shape[1], generator=order)[:FEATURES]
                flat = flat[:, self._chosen[n]]
            self.values[n].append(flat.detach().float().clone())
        return value


def measure_leaks(traced: fx.GraphModule, nodes: Sequence[fx.Node], images: torch.Tensor) -> dict[fx.Node, Leak]:
    """Measure what the values of nodes say about the inputs, of at most `ROWS` images.

    Args:
        traced: in eval mode.
        nodes: whose values have the batch dimension first.
    """
    images = images[:ROWS]
    collector = _Collector(traced, nodes)
    with torch.no_grad():
        for batch in images.split(_AT_ONCE):
            collector.run(batch)
    leaks = {}
    for node, batches in collector.values.items():
        values = torch.cat(batches)
        recovered = max(0.0, 1 - ridge_error(values, images))
        leaks[node] = Leak(float(distance_correlation(images, values)), recovered)
    return leaks


def mark_dominated(costs: Sequence[CutCost]) -> list[CutCost]:
    """Return the same cuts, with the name of another in `dominated_by` where that one is better.

    A better cut leaks no more, takes no longer and moves no more bytes, and is ahead in one of the three. Nothing is
    marked where one of them is not known.
    """
    known = {cost.name: measures for cost in costs if (measures := _measures(cost)) is not None}
    marked = []
    for cost in costs:
        better = [name for name, other in known.items() if cost.name in known and _dominates(other, known[cost.name])]
        marked.append(replace(cost, dominated_by=better[-1] if better else None))
    return marked


def _measures(cost: CutCost) -> tuple[float, float, float] | None:
    """Return leakage, milliseconds and bytes, the less the better."""
    if cost.leak is None or cost.encrypted is None:
        return None
    encrypted = cost.encrypted
    moved = encrypted.bytes_online + encrypted.bytes_offline
    return cost.leak.recovered, encrypted.online_ms + encrypted.offline_ms, float(moved)


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first != second and all(left <= right for left, right in zip(first, second, strict=True))
