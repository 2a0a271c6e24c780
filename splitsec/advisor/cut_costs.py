"""Every clean cut of a model, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from splitsec.advisor.leakage import Leak, mark_dominated, measure_leaks
from splitsec.advisor.mac_count import MacCounter, counting_macs
from splitsec.advisor.machine_speed import Link, Speed
from splitsec.cut import INPUT, CutGraph, CutPoint, Origin, SplitModel, check_split, signature_of, trace
from splitsec.cut.check import ROWS
from splitsec.cut.samples import takes
from splitsec.errors import ConfigError, SplitsecError, first_line
from splitsec.mpc.context import CLIENT, SERVER
from splitsec.mpc.program.bounds import Memory
from splitsec.mpc.program.compile import CompileOptions, compile_tail
from splitsec.mpc.program.cost import StepMemory, predict_cost
from splitsec.mpc.program.shapes import ShapeNotes
from splitsec.mpc.session.plan import correction_count
from splitsec.tensors import shape_text

# Fewest inputs that leakage is measured with.
LEAST_ROWS = 64


@dataclass(frozen=True)
class Encrypted:
    """An encrypted prediction of one sample by the tail: exact counts at the client, and predicted milliseconds.

    Attributes:
        hops: messages that wait for one another.
        guaranteed: whether the weights alone keep every value in range; else bounds were measured.
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

    Attributes:
        shape: of one sample's activation.
        front_macs, tail_macs: multiply-adds of one sample in plain.
        encrypted: None where a layer of the tail has no encrypted form; `reason` then names it.
        leak: what plain training at the cut says about inputs; None unless inputs were given.
        dominated_by: a cut that is at least as good in leakage, latency and bytes, and better in one of them.
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


class _CountingRun(ShapeNotes):
    """A run of a model that notes every node's multiply-adds, and the values of some nodes.

    The nodes of a tail are copies of these, with the shapes that are noted here.
    """

    def __init__(self, module: fx.GraphModule, counter: MacCounter, keep: set[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._counter = counter
        self._keep = keep
        self.values: dict[fx.Node, Any] = {}
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.total()
        value = super().run_node(n)
        self.macs[n] = self._counter.total() - before
        if n in self._keep:
            self.values[n] = value
        return value


def list_cuts(
    model: nn.Module,
    shape: tuple[int, ...] | None,
    *,
    link: Link | None = None,
    speed: Speed | None = None,
    images: torch.Tensor | None = None,
    allow_values: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[CutCost]:
    """List every clean cut of a model in eval mode, in the model's order, the cut at the input first.

    Args:
        shape: of one input, without the batch dimension; None for a model whose signature says it.
        link: between the parties; None for this machine's own.
        speed: of this machine; None to measure it.
        images: to measure leakage with, at least 64: (N, *shape); None leaves it out.
        allow_values: also list cuts behind modules at which up to this many values cross, as `SplitModel` takes them.
        progress: called with how many cuts are done, of how many.

    Raises:
        CutError: the model cannot be traced.
        ConfigError: it cannot take inputs of this shape.
    """
    model = model.eval()
    shape = _shape(model, shape)
    traced = trace(model, _noise(model, ROWS, shape))
    graph = CutGraph(traced)
    nodes = {INPUT: graph.input} | {point.name: point.node for point in graph.points}
    values, macs = _run(traced, _noise(model, 1, shape), set(nodes.values()))
    sample = _noise(model, ROWS, shape)
    if images is not None and tuple(images.shape[1:]) == shape:
        sample = images[:ROWS].to(sample.dtype)
    check_split(model, [traced], sample, cut=INPUT)
    usable = {name: node for name, node in nodes.items() if _can_be_sent(values[node])}
    leaks = {} if images is None else _leaks(traced, [*usable.values()], shape, images)
    pricing = _Pricing(graph, macs, speed or Speed(), link or Link())
    costs = []
    wider = graph.wider(allow_values) if allow_values > 1 else []
    for done, (name, node) in enumerate(nodes.items(), 1):
        if name in usable:
            costs.append(replace(pricing.cut_cost(name, node, values[node]), leak=leaks.get(node)))
        progress(done, len(nodes) + len(wider))
    for done, point in enumerate(wider, len(nodes) + 1):
        costs.append(pricing.cost_of_several(point, allow_values, _noise(model, 1, shape)))
        progress(done, len(nodes) + len(wider))
    order = {name: graph.order[node] for name, node in nodes.items()}
    order |= {f"{point.name}@{allow_values}": graph.order[point.node] for point in wider}
    costs.sort(key=lambda cost: order[cost.name])
    return mark_dominated(costs)


def _can_be_sent(value: Any) -> bool:
    """Say whether a value consists of real numbers with a batch dimension."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[:1] == (1,)


def _leaks(
    traced: fx.GraphModule, nodes: list[fx.Node], shape: tuple[int, ...], images: torch.Tensor
) -> dict[fx.Node, Leak]:
    if tuple(images.shape[1:]) != shape or len(images) < LEAST_ROWS:
        raise ConfigError(
            f"to measure leakage give at least {LEAST_ROWS} inputs of shape {shape_text(shape)}, not "
            f"{shape_text(images.shape)}"
        )
    return measure_leaks(traced, nodes, images.to(next(traced.parameters(), images).dtype))


def _shape(model: nn.Module, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of one input, which a model of several inputs says itself."""
    signature = signature_of(model)
    own = tuple(signature.sample(1).shape[1:]) if signature.inputs else ()
    if shape is None and not signature.inputs:
        raise ConfigError("give the shape of one input (--input), such as 3,32,32")
    if shape not in (None, own) and signature.inputs:
        raise ConfigError(f"the model's signature {signature} says of what shape its inputs are; leave --input out")
    return own if shape is None else shape


def _noise(model: nn.Module, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    dtype = next(model.parameters(), torch.empty(0)).dtype
    if signature_of(model).inputs:
        sample = signature_of(model).sample(rows)
        return sample.to(dtype) if sample.is_floating_point() else sample
    real = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = torch.zeros(rows, *shape, dtype=torch.int64)
    return whole if takes(model, whole) and not takes(model, real) else real


def _run(
    traced: fx.GraphModule, noise: torch.Tensor, keep: set[fx.Node]
) -> tuple[dict[fx.Node, Any], dict[fx.Node, int]]:
    shape = noise.shape[1:]
    with torch.no_grad(), counting_macs() as counter:
        run = _CountingRun(traced, counter, keep)
        try:
            run.run(noise)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"the model cannot take an input of shape {shape_text(shape)}, without the batch dimension: "
                f"{first_line(error)}"
            ) from error
    return run.values, run.macs


@dataclass(frozen=True)
class _Pricing:
    """What the costs of all cuts of a model are computed from; bounds and steps that cuts share are computed once."""

    graph: CutGraph
    macs: dict[fx.Node, int]
    speed: Speed
    link: Link
    bounds: Memory = field(default_factory=Memory)
    steps: StepMemory = field(default_factory=StepMemory)

    def cut_cost(self, name: str, node: fx.Node, value: torch.Tensor) -> CutCost:
        """Return what a cut costs after a node, whose value for one sample is given."""
        traced, front = self.graph.traced, self.graph.front(node)
        split, encrypted, reason = None, None, ""
        try:
            # The whole trace has been compared with the model.
            split = SplitModel(traced, name, origin=Origin(), check=False).eval()
            encrypted = self._encrypted(split.tail, value)
        except SplitsecError as error:
            reason = str(error)
        front_macs = sum(count for counted, count in self.macs.items() if counted in front)
        return CutCost(
            name=name,
            shape=tuple(value.shape[1:]),
            elements=value.numel(),
            front_parameters=0 if split is None else _parameters(split.front),
            tail_parameters=_parameters(traced) if split is None else _parameters(split.tail),
            front_macs=front_macs,
            tail_macs=sum(self.macs.values()) - front_macs,
            encrypted=encrypted,
            reason=reason,
        )

    def cost_of_several(self, point: CutPoint, values: int, noise: torch.Tensor) -> CutCost:
        """Return what a cut costs at which several values cross.

        Args:
            noise: an input, (1, ...).
        """
        traced, name = self.graph.traced, f"{point.name}@{values}"
        split = SplitModel(traced, name, origin=Origin(), sample=noise, check=False).eval()
        encrypted, reason = None, ""
        with torch.no_grad():
            value = split.front(noise)
        try:
            encrypted = self._encrypted(split.tail, value, shaped=False)
        except SplitsecError as error:
            reason = str(error)
        front = {node for crossing in point.nodes for node in self.graph.front(crossing)}
        front_macs = sum(count for counted, count in self.macs.items() if counted in front)
        return CutCost(
            name=name,
            shape=tuple(value.shape[1:]),
            elements=value.numel(),
            front_parameters=_parameters(split.front),
            tail_parameters=_parameters(split.tail),
            front_macs=front_macs,
            tail_macs=sum(self.macs.values()) - front_macs,
            encrypted=encrypted,
            reason=reason,
        )

    def _encrypted(self, tail: fx.GraphModule, value: torch.Tensor, *, shaped: bool = True) -> Encrypted:
        program, _ = compile_tail(
            tail,
            tuple(value.shape),
            CompileOptions(resolved=False),
            calibration=value,
            memory=self.bounds if shaped else None,
            shaped=shaped,
        )
        predicted = predict_cost(program, CLIENT, self.steps)
        online, offline = self.speed.milliseconds(predicted, self.link)
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
