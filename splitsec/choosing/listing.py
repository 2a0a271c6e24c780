"""Every clean cut of a model with its price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from splitsec.choosing.counting import MacCounter, counting_macs
from splitsec.choosing.leaking import Leak, mark_dominated, measure_leaks
from splitsec.choosing.speed import Link, Speed
from splitsec.cut import INPUT, CutGraph, Origin, SplitModel, check_split, trace, vocabulary
from splitsec.cut.check import ROWS
from splitsec.errors import ConfigError, SplitsecError, first_line
from splitsec.mpc.bounds import Memory
from splitsec.mpc.compiler import compile_tail
from splitsec.mpc.context import CLIENT, SERVER
from splitsec.mpc.costing import StepMemory, predict_cost
from splitsec.mpc.plan import correction_count
from splitsec.mpc.shapes import ShapeNotes

# To measure leakage with.
LEAST_ROWS = 64


@dataclass(frozen=True)
class Encrypted:
    """An encrypted prediction of one sample by the tail: exact counts of the client, and predicted milliseconds.

    `guaranteed` says whether the weights alone keep every value in range; else bounds were measured.
    """

    rounds: int
    hops: int
    bytes_online: int
    bytes_offline: int
    online_ms: float
    offline_ms: float
    guaranteed: bool


@dataclass(frozen=True)
class CutCost:
    """One clean cut: what crosses it, what each side holds and computes, and what the encrypted tail costs.

    `leak` is what plain training at it says about inputs, `dominated_by` a cut that is at least as good in leakage,
    latency and bytes, and better in one; both are None unless inputs were given.

    `shape` is that of one sample's activation. Multiply-adds are those of one sample in plain. Without an encrypted
    form `encrypted` is None and `reason` names the layer.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    front_parameters: int
    tail_parameters: int
    front_macs: int
    tail_macs: int
    encrypted: Encrypted | None
    reason: str = ""
    leak: Leak | None = None
    dominated_by: str | None = None


class _Counting(ShapeNotes):
    """Runs a model and keeps wanted nodes' values and every node's multiply-adds.

    The nodes of a tail are copies of these, with the shapes that are noted here.
    """

    def __init__(self, module: fx.GraphModule, counter: MacCounter, keep: set[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._counter = counter
        self._keep = keep
        self.kept: dict[fx.Node, Any] = {}
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.total()
        value = super().run_node(n)
        self.macs[n] = self._counter.total() - before
        if n in self._keep:
            self.kept[n] = value
        return value


def list_cuts(
    model: nn.Module,
    shape: tuple[int, ...],
    *,
    link: Link | None = None,
    speed: Speed | None = None,
    images: torch.Tensor | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[CutCost]:
    """Every clean cut of a model in eval mode, in its own order, the cut at the input first.

    Args:
        shape: of one input, without the batch dimension.
        link: between the parties; None for this machine's own.
        speed: of this machine; None to measure it.
        images: to measure leakage with, at least 64: (N, *shape); None leaves it out.
        progress: called with how many cuts are done, of how many.

    Raises:
        CutError: the model cannot be traced.
        ConfigError: it cannot take inputs of this shape.
    """
    model = model.eval()
    traced = trace(model)
    graph = CutGraph(traced)
    nodes = {INPUT: graph.input} | {point.name: point.node for point in graph.points}
    values, macs = _run(traced, shape, set(nodes.values()))
    sample = _noise(traced, ROWS, shape)
    if images is not None and tuple(images.shape[1:]) == shape:
        sample = images[:ROWS].to(sample.dtype)
    check_split(model, [traced], sample, cut=INPUT)
    speed, link = speed or Speed(), link or Link()
    memories = Memory(), StepMemory()
    usable = {name: node for name, node in nodes.items() if _crosses(values[node])}
    leaks = {} if images is None else _leaks(traced, [*usable.values()], shape, images)
    found = []
    for done, (name, node) in enumerate(nodes.items(), 1):
        if name in usable:
            cost = _cost(traced, graph, name, node, values[node], macs, speed, link, memories)
            found.append(replace(cost, leak=leaks.get(node)))
        progress(done, len(nodes))
    return mark_dominated(found)


def _crosses(value: Any) -> bool:
    """Whether a value may be sent: real numbers with a batch dimension."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[:1] == (1,)


def _leaks(
    traced: fx.GraphModule, nodes: list[fx.Node], shape: tuple[int, ...], images: torch.Tensor
) -> dict[fx.Node, Leak]:
    if tuple(images.shape[1:]) != shape or len(images) < LEAST_ROWS:
        text = "x".join(map(str, images.shape))
        raise ConfigError(
            f"to measure leakage give at least {LEAST_ROWS} inputs of shape {'x'.join(map(str, shape))}, not {text}"
        )
    return measure_leaks(traced, nodes, images.to(next(traced.parameters(), images).dtype))


def _noise(traced: fx.GraphModule, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    if vocabulary(traced) is not None:
        return torch.zeros(rows, *shape, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, *shape, generator=generator).to(next(traced.parameters(), torch.empty(0)).dtype)


def _run(
    traced: fx.GraphModule, shape: tuple[int, ...], keep: set[fx.Node]
) -> tuple[dict[fx.Node, Any], dict[fx.Node, int]]:
    noise = _noise(traced, 1, shape)
    with torch.no_grad(), counting_macs() as counter:
        interpreter = _Counting(traced, counter, keep)
        try:
            interpreter.run(noise)
        except (RuntimeError, ValueError, IndexError) as error:
            text = "x".join(map(str, shape))
            raise ConfigError(
                f"the model cannot take an input of shape {text}, without the batch dimension: {first_line(error)}"
            ) from error
    return interpreter.kept, interpreter.macs


def _cost(
    traced: fx.GraphModule,
    graph: CutGraph,
    name: str,
    node: fx.Node,
    value: torch.Tensor,
    macs: dict[fx.Node, int],
    speed: Speed,
    link: Link,
    memories: tuple[Memory, StepMemory],
) -> CutCost:
    split, front = None, graph.front(node)
    encrypted, reason = None, ""
    try:
        # The whole trace has been compared with the model.
        split = SplitModel(traced, name, origin=Origin(), check=False).eval()
        encrypted = _encrypted(split.tail, value, speed, link, memories)
    except SplitsecError as error:
        reason = str(error)
    ahead = sum(count for one, count in macs.items() if one in front)
    return CutCost(
        name=name,
        shape=tuple(value.shape[1:]),
        elements=value.numel(),
        front_parameters=0 if split is None else _parameters(split.front),
        tail_parameters=_parameters(traced) if split is None else _parameters(split.tail),
        front_macs=ahead,
        tail_macs=sum(macs.values()) - ahead,
        encrypted=encrypted,
        reason=reason,
    )


def _encrypted(
    tail: fx.GraphModule, value: torch.Tensor, speed: Speed, link: Link, memories: tuple[Memory, StepMemory]
) -> Encrypted:
    program, _ = compile_tail(
        tail, tuple(value.shape), calibration=value, memory=memories[0], shaped=True, resolved=False
    )
    predicted = predict_cost(program, CLIENT, memories[1])
    online, offline = speed.milliseconds(predicted, link)
    total = predicted.total
    return Encrypted(
        rounds=total.rounds,
        hops=predicted.hops,
        bytes_online=total.bytes_sent + total.bytes_received,
        bytes_offline=8 * sum(correction_count(predicted.plan, rank) for rank in (SERVER, CLIENT)),
        online_ms=online,
        offline_ms=offline,
        guaranteed=program.guaranteed,
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
