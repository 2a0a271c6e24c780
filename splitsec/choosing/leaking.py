"""What a cut leaks in plain training, quickly: without training an attack, beside what the cut costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from splitsec.privacy.activations import distance_correlation
from splitsec.privacy.audit.inversion import ridge_error

if TYPE_CHECKING:
    from splitsec.choosing.listing import CutCost

# Rows that are looked at, and values of each activation.
ROWS, FEATURES = 512, 4096
_AT_ONCE = 32


@dataclass(frozen=True)
class Leak:
    """Two measures of what an activation says about its input.

    Attributes:
        distance_correlation: from 0 to 1 (see `privacy.activations`).
        recovered: the share of the inputs' variance that the best linear reconstruction recovers, at least 0: a lower
            bound of what `splitsec audit` finds.
    """

    distance_correlation: float
    recovered: float


class _Keeping(fx.Interpreter):
    """Keeps some values of wanted nodes, batch after batch."""

    def __init__(self, module: fx.GraphModule, keep: Sequence[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._keep = set(keep)
        self._chosen: dict[fx.Node, torch.Tensor] = {}
        self.kept: dict[fx.Node, list[torch.Tensor]] = {node: [] for node in keep}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._keep:
            flat = value.flatten(1)
            if flat.shape[1] > FEATURES:
                if n not in self._chosen:
                    order = torch.Generator().manual_seed(0)
                    self._chosen[n] = torch.randperm(flat.shape[1], generator=order)[:FEATURES]
                flat = flat[:, self._chosen[n]]
            self.kept[n].append(flat.detach().float().clone())
        return value


def measure_leaks(traced: fx.GraphModule, nodes: Sequence[fx.Node], images: torch.Tensor) -> dict[fx.Node, Leak]:
    """What the values of nodes say about the inputs, of at most `ROWS` images.

    Args:
        traced: in eval mode.
        nodes: whose values have the batch dimension first.
    """
    images = images[:ROWS]
    keeping = _Keeping(traced, nodes)
    with torch.no_grad():
        for part in images.split(_AT_ONCE):
            keeping.run(part)
    found = {}
    for node, parts in keeping.kept.items():
        values = torch.cat(parts)
        left = ridge_error(values, images)
        found[node] = Leak(float(distance_correlation(images, values)), max(0.0, 1 - left))
    return found


def mark_dominated(costs: Sequence[CutCost]) -> list[CutCost]:
    """The same cuts, each with the name of one that leaks no more, takes no longer, moves no more, and is better in one
    of the three; None where there is no such cut or something is not known."""

    def measures(one: CutCost) -> tuple[float, float, float] | None:
        if one.leak is None or one.encrypted is None:
            return None
        crypted = one.encrypted
        moved = crypted.bytes_online + crypted.bytes_offline
        return (one.leak.recovered, crypted.online_ms + crypted.offline_ms, float(moved))

    known = [(one.name, found) for one in costs for found in [measures(one)] if found is not None]
    marked = []
    for one in costs:
        mine = measures(one)
        better = [
            name
            for name, theirs in known
            if mine is not None and theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
        ]
        marked.append(replace(one, dominated_by=better[-1] if better else None))
    return marked
