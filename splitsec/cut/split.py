"""Cutting a model into a front for the client and a tail for the server."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from splitsec.cut.graph import CutPoint, cut_points, find_cut, front_nodes, trace
from splitsec.errors import CutError


class SplitModel(nn.Module):
    """An unmodified `nn.Module` cut at one point.

    `front` and `tail` are ordinary modules. They share the parameters of `model` under the same names, so the keys of
    both state dicts together are those of the whole.

    Args:
        model: any module that torch.fx can trace and that takes one tensor.
        cut: where: a module path such as `"layer2.1"` or the name of a graph node; see `cuts`. `"input"` leaves the
        whole network
            to the server, for encrypted prediction only: training would send the inputs themselves.

    Raises:
        CutError: the model cannot be traced, or `cut` does not separate it.

    Example:
        >>> from torch import nn
        >>> split = SplitModel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), cut="1")
        >>> split.cuts
        ['0', '1']
        >>> list(split.tail.state_dict())
        ['2.weight', '2.bias']
    """

    def __init__(self, model: nn.Module, cut: str) -> None:
        super().__init__()
        traced = trace(model)
        point = find_cut(traced, cut)
        self.cut = point.name
        self.cuts = [each.name for each in cut_points(traced)]
        self.front: fx.GraphModule = _front(traced, point)
        self.tail: fx.GraphModule = _tail(traced, point)
        shared = set(dict(self.front.named_parameters())) & set(dict(self.tail.named_parameters()))
        if shared:
            raise CutError(f"both sides of the cut '{cut}' use {', '.join(sorted(shared))}; choose another cut")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The whole model: tail(front(x))."""
        out: torch.Tensor = self.tail(self.front(x))
        return out

    def whole_state_dict(self) -> dict[str, torch.Tensor]:
        """The state dict under the names of the uncut model."""
        return {**self.front.state_dict(), **self.tail.state_dict()}

    def load_whole_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load a state dict of the uncut model; raises `CutError` naming keys or shapes that do not fit."""
        for segment in (self.front, self.tail):
            load_segment(segment, {key: state[key] for key in segment.state_dict() if key in state})


def load_segment(segment: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load `state` into one segment; raises `CutError` naming keys or shapes that do not fit."""
    have = segment.state_dict()
    missing, extra = sorted(set(have) - set(state)), sorted(set(state) - set(have))
    wrong = [key for key in have if key in state and have[key].shape != state[key].shape]
    if missing or extra or wrong:
        problems = [
            f"{label} {', '.join(keys[:5])}"
            for label, keys in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
            if keys
        ]
        raise CutError(f"the weights do not fit the segment: {'; '.join(problems)}")
    segment.load_state_dict(dict(state))


def _front(traced: fx.GraphModule, point: CutPoint) -> fx.GraphModule:
    kept = front_nodes(point.node)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node in kept or node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[point.node])
    return _segment(traced, graph, "Front")


def _tail(traced: fx.GraphModule, point: CutPoint) -> fx.GraphModule:
    front = front_nodes(point.node)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {point.node: graph.placeholder("activation")}
    for node in traced.graph.nodes:
        if node.op == "placeholder" or (node in front and all(user in front for user in node.users)):
            continue
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return _segment(traced, graph, "Tail")


def _segment(traced: fx.GraphModule, graph: fx.Graph, name: str) -> fx.GraphModule:
    graph.lint()
    segment = fx.GraphModule(traced, graph, class_name=name)
    segment.train(traced.training)
    return segment
