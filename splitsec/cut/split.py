"""Cutting a model into a front for the client, a tail for the server and, in a U, a head for the client."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import fx, nn

from splitsec.cut.check import ROWS, check_batch, check_split
from splitsec.cut.origin import Origin, segments_digest, set_origin, whole_origin
from splitsec.cut.packing import Row, pack, rows_of, unpack
from splitsec.cut.points import CutGraph, CutPoint
from splitsec.cut.samples import make_sample
from splitsec.cut.signature import Sample, adapted_to, original, signature_of
from splitsec.cut.tracing import forget_constants, trace
from splitsec.cut.weights import load_part
from splitsec.errors import CutError

Cut: TypeAlias = str | Sequence[str]


def cut_names(cut: Cut) -> tuple[str, ...]:
    """Return the name of a cut, or both of a U, given as a sequence or as text with a comma between.

    Raises:
        CutError: no name, or more than two.
    """
    parts = cut.split(",") if isinstance(cut, str) else cut
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise CutError(f"{cut!r} is no cut; write a name, or two for a U")
    names = tuple(part.strip() for part in parts)
    if not 1 <= len(names) <= 2 or not all(names):
        raise CutError(f"'{cut}' is no cut; write one name, or two for a U: 'layer1,fc'")
    return names


class SplitModel(nn.Module):
    """An unmodified `nn.Module` cut at one point, or at two.

    `front`, `tail` and `head` are ordinary modules. They share the parameters of `model` under the same names, so the
    keys of all state dicts together are those of the whole.

    Args:
        model: any module that torch.fx can trace and that takes one tensor, batch dimension first.
        cut: where: a module path such as `"layer2.1"` or the name of a graph node; see `cuts`. The front ends with it.
            `"input"` leaves the whole network to the server, for encrypted prediction only: training would send the
            inputs themselves. Two names make a U: `("layer1", "fc")` ends the front with `layer1` and begins the head
            with `fc`. Front and head are the client's, so that labels never leave it.
        origin: of the values, which all segments remember; None computes it from the values of the whole model.
        sample: a few inputs, (N, ...), on which the segments are compared with the model; None makes them as its first
            layers suggest, and leaves the cut unchecked if the model takes none of those. A model of several inputs is
            given a sample of each, by the names of its arguments; front and tail then take them packed
            (`signature.pack`).
        allow_values: how many values may cross the cut, packed into one tensor, such as a residual path and a mask;
            `"layer1.0.bn1@2"` says the same.
        output: of a model that returns several tensors, the key, index or attribute of the one that is meant.
        check: whether to compare the segments with the model.

    Attributes:
        cut: the cut as text, which all parties of a run must agree on; a U's names with a comma between.
        cuts: the names of all clean cuts.
        exported: whether the segments are for inputs of one shape alone, since torch.export made them.
        signature: of a model of several inputs, how they are packed into one tensor.
        checked: whether the segments were compared with the model (`check_split`).
        head: of a U, else None.

    Raises:
        CutError: the model cannot be traced, `cut` does not separate it, or the segments do not do what it does.

    Example:
        >>> from torch import nn
        >>> split = SplitModel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), cut="1")
        >>> split.cuts
        ['0', '1']
        >>> list(split.tail.state_dict())
        ['2.weight', '2.bias']
    """

    head: fx.GraphModule | None

    def __init__(
        self,
        model: nn.Module,
        cut: Cut,
        *,
        origin: Origin | None = None,
        sample: Sample | None = None,
        output: str = "",
        allow_values: int = 1,
        check: bool = True,
    ) -> None:
        super().__init__()
        names, values = _allowed(cut_names(cut), allow_values)
        model, sample = adapted_to(model, sample, output)
        self.signature = signature_of(model)
        graph = CutGraph(trace(model, sample))
        self.exported: bool = "exported" in graph.traced.meta
        if len(names) == 2:
            graph.check_order(*names)
        points = [graph.find(names[0], values), *(graph.before(name) for name in names[1:])]
        if len(points) == 2 and (points[0].node not in graph.front(points[1].node) or points[0].node is points[1].node):
            raise CutError(f"between '{names[0]}' and '{names[1]}' there is nothing for the server; choose other cuts")
        self.cut = ",".join((points[0].name + (f"@{values}" if points[0].others else ""), *names[1:]))
        cross = _Crossing(points[0], self._rows(graph, points[0], model, sample))
        self.cuts = [point.name for point in graph.points]
        head = _Crossing(points[1], []) if len(points) == 2 else None
        # Not a submodule: its parameters are those of the segments.
        self._whole = (original(model),)
        self.front: fx.GraphModule = _segment(graph, "Front", None, cross)
        self.tail: fx.GraphModule = _segment(graph, "Tail", cross, head)
        self.head = None if head is None else _segment(graph, "Head", head, None)
        self.training = self._was_training = model.training
        self._refuse_shared()
        self._remember(whole_origin(model.state_dict()) if origin is None else origin)
        self.checked = False
        sample = make_sample(model) if check and sample is None else sample
        if check and sample is not None:
            self.checked = check_split(model, self.segments, sample, cut=self.cut)
            tensors = graph.tensors(sample[:ROWS])
            self.cuts = [point.name for point in graph.points if point.node in tensors]

    @staticmethod
    def _rows(graph: CutGraph, point: CutPoint, model: nn.Module, sample: torch.Tensor | None) -> list[Row]:
        """Return what a sample has of each of several values that cross."""
        if not point.others:
            return []
        sample = make_sample(model, shapes_alone=True) if sample is None else sample
        return rows_of(graph.traced, point.nodes, None if sample is None else sample[:ROWS])

    def mark(self) -> None:
        """Let the segments belong together with the values that they have now.

        Call it after training them outside of splitsec since they were cut: segments whose values have changed
        otherwise predict nothing, since nothing says whether they belong together.
        """
        self._remember(whole_origin({**self._whole[0].state_dict(), **self.whole_state_dict()}))

    def _remember(self, origin: Origin) -> None:
        heads = [] if self.head is None else [self.head]
        for party in ([self.front, *heads], [self.tail]):
            digest = segments_digest(party) if origin.mark else ""
            for segment in party:
                set_origin(segment, replace(origin, digest=digest))

    @property
    def segments(self) -> list[fx.GraphModule]:
        """Return front, tail and, of a U, head."""
        return [self.front, self.tail, *([] if self.head is None else [self.head])]

    def forward(self, x: torch.Tensor | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the whole model's output: tail(front(x)), and the head of that if there is one.

        Args:
            x: the inputs (N, ...); those of a model of several inputs packed, or each by its name.
        """
        if x is None or inputs:
            if x is not None or not self.signature.inputs:
                raise CutError(f"the model takes one tensor, not {', '.join(inputs) or 'none'}")
            x = self.signature.pack(inputs)
        activation = self.front(x)
        check_batch(activation, x, self.cut)
        output: torch.Tensor = self.tail(activation)
        return output if self.head is None else self.head(output)

    def whole_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state dict under the names of the uncut model."""
        return {key: value for segment in self.segments for key, value in segment.state_dict().items()}

    def load_whole_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load a state dict of the uncut model; raises `CutError` naming keys or shapes that do not fit."""
        for segment in self.segments:
            load_part(segment, state)
        self._remember(whole_origin(self._whole[0].state_dict()))

    def merge(self) -> nn.Module:
        """Return the whole model, of the class it had, with copies of the segments' weights and in their mode."""
        whole = copy.deepcopy(self._whole[0])
        state = {key: value.detach().clone() for key, value in self.whole_state_dict().items()}
        # Values that no segment uses stay what they were. The others are copied into the model's own tensors, so that
        # tied weights stay tied; those of the meta device have no memory.
        bare = any(value.is_meta for value in whole.state_dict().values())
        whole.load_state_dict({**whole.state_dict(), **state}, assign=bare)
        trained = {name: value for segment in self.segments for name, value in segment.named_parameters()}
        for name, parameter in whole.named_parameters():
            if name in trained:
                parameter.requires_grad_(trained[name].requires_grad)
        layers = {path: layer for segment in self.segments for path, layer in segment.named_modules() if path}
        for path, layer in whole.named_modules():
            # A module that torch.fx looked into is of another type in a segment, or in none.
            own = layers.get(path)
            if own is not None and type(own) is type(layer):
                layer.training = own.training
            elif self.training != self._was_training:
                layer.training = self.training
        return whole

    def _refuse_shared(self) -> None:
        earlier: dict[nn.Parameter, str] = {}
        for segment in self.segments:
            names = {parameter: name for name, parameter in segment.named_parameters(remove_duplicate=False)}
            for parameter, name in names.items():
                other = earlier.get(parameter)
                if other == name:
                    raise CutError(
                        f"both sides of the cut '{self.cut}' use '{name}': what holds it is called before the cut and "
                        "behind it; cut before its first call, or behind its last"
                    )
                if other is not None:
                    place = _expression(name)
                    raise CutError(
                        f"'{name}' and '{other}' are one parameter (tied weights), which the cut '{self.cut}' would "
                        f"leave to both sides; untie them before cutting: "
                        f"{place} = nn.Parameter({place}.detach().clone())"
                    )
            earlier.update(names)


def _expression(path: str) -> str:
    """Return Python code for a parameter of a model: `model.fc.weight`, `model.get_submodule('2').weight`."""
    owner, _, name = path.rpartition(".")
    if all(part.isidentifier() for part in path.split(".")):
        return f"model.{path}"
    return f"model.get_submodule('{owner}').{name}"


def _allowed(names: tuple[str, ...], values: int) -> tuple[tuple[str, ...], int]:
    """Return the names of a cut without `@2`, and how many values may cross."""
    name, _, count = names[0].partition("@")
    if count and not (count.isdigit() and int(count) > 0):
        raise CutError(f"'{names[0]}' is no cut; write a name, and how many values may cross: '{name}@2'")
    if values < 1:
        raise CutError(f"allow_values is {values}; at least one value crosses a cut")
    return (name, *names[1:]), max(values, int(count or 1))


@dataclass(frozen=True)
class _Crossing:
    """A cut, and what a sample has of each of several values that cross it."""

    point: CutPoint
    rows: list[Row]

    def front(self, graph: CutGraph) -> set[fx.Node]:
        """Return the nodes that lie before the cut."""
        return {node for value in self.point.nodes for node in graph.front(value)}


def _segment(graph: CutGraph, name: str, after: _Crossing | None, upto: _Crossing | None) -> fx.GraphModule:
    """Make a segment of what lies after one cut and up to another."""
    before = after.front(graph) if after is not None else set()
    members = upto.front(graph) if upto is not None else set(graph.nodes)
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if after is not None:
        activation = new.placeholder("activation" if name == "Tail" else "result")
        # Shape and dtype, where the graph's nodes know them, as copied nodes have them.
        if after.rows:
            copies.update(zip(after.point.nodes, unpack(new, activation, after.rows), strict=True))
        else:
            activation.meta.update(after.point.node.meta)
            copies[after.point.node] = activation
    for node in graph.nodes:
        if node in copies or node not in members or (node in before and not graph.is_free(node)):
            continue
        if after is not None and node in graph.batch_sizes:
            copies[node] = new.call_method("size", (activation, 0))
        elif after is None if node.op == "placeholder" else all(other in copies for other in node.all_input_nodes):
            copies[node] = new.node_copy(node, copies.__getitem__)
    if upto is not None:
        crossing = [copies[node] for node in upto.point.nodes]
        new.output(pack(new, crossing, upto.rows) if upto.rows else crossing[0])
    _erase_unused(new)
    new.lint()
    segment = fx.GraphModule(graph.traced, new, class_name=name)
    forget_constants(segment, graph.traced)
    # Not `train()`, which would change the modes of the model's own layers.
    segment.training = graph.traced.training
    return segment


def _erase_unused(graph: fx.Graph) -> None:
    """Erase the constants of the other side."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not node.meta.get("changes"):
            graph.erase_node(node)


def is_u(cut: str) -> bool:
    """Say whether a `SplitModel.cut` has a head at the client."""
    return len(cut_names(cut)) == 2
