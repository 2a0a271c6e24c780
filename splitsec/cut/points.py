"""The cut points of a traced model: which nodes alone separate front from tail."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import fx, nn

from splitsec.cut.both_modes import containers
from splitsec.cut.mode_switch import ByMode
from splitsec.cut.state import as_it_was
from splitsec.errors import CutError

# The cut before the first layer: the whole network is the tail.
INPUT = "input"


@dataclass(frozen=True)
class CutPoint:
    """A node whose value alone crosses from front to tail.

    Attributes:
        name: what a user writes: the path of the module that the node calls, else that of the innermost module that
            ends with the node, else the graph node's name.
        others: further nodes whose values cross, where the user allows it.
    """

    name: str
    node: fx.Node
    others: tuple[fx.Node, ...] = ()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Return all nodes whose values cross, `node` first."""
        return (self.node, *self.others)


def node_name(node: fx.Node) -> str:
    """Return the name by which a user refers to a node."""
    return str(node.target) if node.op == "call_module" else node.name


class CutGraph:
    """The graph of a traced model, asked for its cuts.

    Some values are on both sides of every cut and cross none: parameters and whatever is computed from them alone, and
    the size of the batch, which an activation has as well as the input.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.nodes = list(traced.graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.input = next(node for node in self.nodes if node.op == "placeholder")
        # Sets of nodes are the bits of a number: networks have hundreds of nodes, and every pair is looked at.
        self._before: dict[fx.Node, int] = {}
        self._users: list[int] = []
        whole, changes = 1 << self.order[self.input], 0
        for index, node in enumerate(self.nodes):
            before = 1 << index
            for other in node.all_input_nodes:
                before |= self._before[other]
            if node.meta.get("changes") and not node.users:
                # A counter is on the side of the layer behind it.
                changes |= before
            elif before & whole and node is not self.input:
                before |= changes
                changes = 0
            self._before[node] = before
        for node in self.nodes:
            self._users.append(sum(1 << self.order[user] for user in node.users))
        # The last node of every module that the tracer looked into.
        self._last = {path: node for node in self.nodes for path in containers(node)}
        self.batch_sizes = {node for node in self.nodes if self._is_batch_size(node)}
        self._sizes = sum(1 << self.order[node] for node in self.batch_sizes)
        self._free = 0
        for index, node in enumerate(self.nodes):
            inputs = node.all_input_nodes
            computed = bool(inputs) and all(self._free >> self.order[other] & 1 for other in inputs)
            free = node in self.batch_sizes or not self._before[node] & whole or computed
            if free and not node.meta.get("changes"):
                self._free |= 1 << index

    def _is_batch_size(self, node: fx.Node) -> bool:
        if node.target is torch.ops.aten.sym_size.int:
            return node.args == (self.input, 0)
        if node.op == "call_method" and node.target == "size":
            return bool(node.args[0] is self.input and node.args[1:] == (0,))
        if node.op != "call_function" or node.target is not operator.getitem or node.args[1] != 0:
            return False
        sizes = node.args[0]
        if not isinstance(sizes, fx.Node) or not sizes.args or sizes.args[0] is not self.input:
            return False
        if sizes.target is getattr:
            return bool(sizes.args[1] == "shape")
        return sizes.op == "call_method" and sizes.target == "size" and len(sizes.args) == 1

    def front(self, cut: fx.Node) -> set[fx.Node]:
        """Return the nodes that the front computes: the cut and all that it depends on."""
        return set(self._members(self._before[cut]))

    def is_free(self, node: fx.Node) -> bool:
        """Say whether the node's value is on both sides of every cut."""
        return bool(self._free >> self.order[node] & 1)

    def _members(self, bits: int) -> list[fx.Node]:
        members = []
        while bits:
            low = bits & -bits
            members.append(self.nodes[low.bit_length() - 1])
            bits ^= low
        return members

    def crossing(self, cut: fx.Node) -> list[fx.Node]:
        """Return the values that a cut after `cut` would send: computed up to it and used after it, `cut` included."""
        return self._crossing(self._before[cut])

    def _crossing(self, front: int) -> list[fx.Node]:
        # A size of the batch that is asked for after the cut is asked of the activation.
        beyond = ~front & ~self._sizes
        return [
            node
            for node in self._members(front & ~self._free)
            if self._users[self.order[node]] & beyond & ~self._shapes_alone(node)
        ]

    def _shapes_alone(self, node: fx.Node) -> int:
        """Return the users that only lead to sizes of the batch: `x.shape` of the input."""
        if node is not self.input:
            return 0
        users = [user for user in node.users if user.users and all(other in self.batch_sizes for other in user.users)]
        return sum(1 << self.order[user] for user in users)

    @cached_property
    def points(self) -> list[CutPoint]:
        """Return every clean cut of the model, in the model's order; the input and the output are none."""
        points: list[CutPoint] = []
        names: set[str] = set()
        for node in self.nodes:
            if node.op not in ("call_module", "call_function", "call_method") or self.is_free(node):
                continue
            if (
                not node.meta.get("sendable", True)
                or self._gives_several(node)
                or any(user.op == "output" for user in node.users)
            ):
                continue
            if self.crossing(node) != [node]:
                continue
            own = [node_name(node)] if node.op == "call_module" else []
            around = [path for path in reversed(containers(node)) if self._last[path] is node]
            # A call that depends on the mode is a module of ours, and no layer of the user's.
            by_mode = bool(own) and isinstance(self.traced.get_submodule(own[0]), ByMode)
            paths = around + own if by_mode else own + around
            name = next((path for path in paths if path not in names), node.name)
            names.add(name)
            points.append(CutPoint(name, node))
        return points

    def _gives_several(self, node: fx.Node) -> bool:
        """Say whether the node's value is several tensors, or a fact about a tensor, such as its size."""
        if node.op == "call_module":
            return isinstance(self.traced.get_submodule(str(node.target)), (nn.RNNBase, nn.MultiheadAttention))
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.target is operator.getitem:
            return self._is_hidden_state(node)
        return name in ("getattr", "size", "dim", "numel", "chunk", "split", "unbind", "tensor_split")

    def _is_hidden_state(self, node: fx.Node) -> bool:
        """Say whether a node is the second result of a recurrent layer or of attention, or a part of an LSTM's.

        The hidden state of a recurrent layer is (layers, rows, size), so that its rows are not the batch.
        """
        source, index = node.args
        if not isinstance(source, fx.Node):
            return False
        if source.op == "call_module":
            return isinstance(index, int) and index == 1 and self._gives_several(source)
        if source.target is not operator.getitem or not self._is_hidden_state(source):
            return False
        layer = source.args[0]
        return (
            isinstance(layer, fx.Node)
            and layer.op == "call_module"
            and isinstance(self.traced.get_submodule(str(layer.target)), nn.LSTM)
        )

    def tensors(self, sample: torch.Tensor) -> set[fx.Node]:
        """Return the nodes whose value for `sample` may be sent: real numbers, a row for each row of the sample."""
        run = _SendableNodes(self.traced, len(sample))
        with as_it_was(self.traced, values=True), torch.no_grad():
            self.traced.eval()
            run.run(sample)
        return run.nodes

    def wider(self, values: int) -> list[CutPoint]:
        """Return the cuts behind modules at which more than one value crosses, up to `values`, in the model's order."""
        known = {point.node for point in self.points}
        points: dict[fx.Node, CutPoint] = {}
        called = {node_name(node): node for node in self.nodes if node.op == "call_module"}
        for path, node in (self._last | called).items():
            others = (
                () if node in known or any(user.op == "output" for user in node.users) else self._several(node, values)
            )
            if others:
                # The outermost module that ends here names the cut.
                points.setdefault(node, CutPoint(path, node, others))
        return sorted(points.values(), key=lambda point: self.order[point.node])

    def _beside(self, cut: fx.Node) -> list[fx.Node]:
        """Return the values that a cut sends if several may cross.

        What is made of the input without weights, such as masks, is made in front of the cut, so that the input itself,
        of which other parts are nobody else's business, does not cross.
        """
        front, taken = self._before[cut], {self.input}
        for node in self.nodes:
            inputs = [other for other in node.all_input_nodes if not self.is_free(other)]
            if inputs and all(other in taken for other in inputs) and not self._has_weights(node):
                taken.add(node)
                front |= 1 << self.order[node]
        return self._crossing(front)

    def _several(self, cut: fx.Node, most: int) -> tuple[fx.Node, ...]:
        """Return the other values that a cut sends, if all may be sent and are not too many; else nothing."""
        crossing = self._beside(cut)
        if cut not in crossing or len(crossing) > most or self.input in crossing:
            return ()
        if any(self._gives_several(node) or node.op == "get_attr" for node in crossing):
            return ()
        return tuple(node for node in crossing if node is not cut)

    @cached_property
    def _weights(self) -> set[fx.Node]:
        """Return parameters, and what is computed of them alone."""
        weights: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "get_attr":
                path, _, name = str(node.target).rpartition(".")
                if isinstance(getattr(self.traced.get_submodule(path), name), nn.Parameter):
                    weights.add(node)
            elif self.is_free(node) and any(other in weights for other in node.all_input_nodes):
                weights.add(node)
        return weights

    def _has_weights(self, node: fx.Node) -> bool:
        if node.op == "output":
            return True
        if node.op == "call_module":
            return next(self.traced.get_submodule(str(node.target)).parameters(), None) is not None
        return any(other in self._weights for other in node.all_input_nodes)

    def find(self, name: str, values: int = 1) -> CutPoint:
        """Return the clean cut called `name`: a module path (a container's stands for its last call) or a graph node.

        Args:
            values: how many values may cross.

        Raises:
            CutError: no such node (lists the valid ones), or more than one value crosses (names them and the nearest).
        """
        for point in self.points:
            if name in (point.name, point.node.name):
                return point
        if name == INPUT:
            return CutPoint(INPUT, self.input)
        last = max(self._called(name), key=self.order.__getitem__)
        for point in self.points:
            if point.node is last:
                return CutPoint(name, last)
        if any(user.op == "output" for user in last.users):
            raise CutError(f"a cut after '{name}' would leave nothing for the server; {self._valid}")
        others = self._several(last, values)
        if others:
            return CutPoint(name, last, others)
        inside = [point for point in self.points if point.name.startswith(name + ".")]
        self._refuse(f"a cut after '{name}'", last, inside[-1:])

    def before(self, name: str) -> CutPoint:
        """Return the clean cut before a head that begins with `name`, which takes the value of that cut alone.

        Raises:
            CutError: as `find` does.
        """
        nodes = set(self._called(name))
        first = min(nodes, key=self.order.__getitem__)
        inputs = {other for node in nodes for other in node.all_input_nodes if other not in nodes}
        inputs = {node for node in inputs if not self.is_free(node)}
        for point in self.points:
            if inputs == {point.node}:
                return point
        if inputs == {self.input}:
            raise CutError(f"a head that begins with '{name}' would leave nothing for the server; {self._valid}")
        self._refuse(f"a cut before '{name}'", max(inputs, key=self.order.__getitem__, default=first), [])

    def check_order(self, front: str, head: str) -> None:
        """Raise `CutError` if the last layer of the front comes after the first of the head."""
        places = [[self.order[node] for node in self._called(name)] for name in (front, head) if name != INPUT]
        if len(places) == 2 and max(places[0]) >= max(places[1]):
            raise CutError(
                f"'{front}' does not come before '{head}'; a U names the last layer of the front, then the first of "
                "the head, and leaves what lies between to the server"
            )

    def _called(self, name: str) -> list[fx.Node]:
        tests: list[Callable[[fx.Node], bool]] = [
            lambda node: name in (node_name(node), node.name),
            lambda node: node_name(node).startswith(name + "."),
            lambda node: name in containers(node),
        ]
        nodes = [node for node in self.nodes if node.op != "output" and any(test(node) for test in tests)]
        if not nodes:
            raise CutError(f"there is no cut '{name}'; {self._valid}")
        return nodes

    @property
    def _valid(self) -> str:
        return f"the valid cuts are: {', '.join(point.name for point in self.points) or 'none'}"

    def _refuse(self, what: str, node: fx.Node, better: list[CutPoint]) -> NoReturn:
        crossed = ", ".join(self._describe(other, node) for other in self.crossing(node))
        near = sorted(self.points, key=lambda point: abs(self.order[point.node] - self.order[node]))[:2]
        offer = " or ".join(f"'{point.name}'" for point in (better or near)) or "none"
        if self.crossing(node) == [node]:
            raise CutError(
                f"{what} would send what is no tensor with a row for each sample; the nearest clean cut is {offer}"
            )
        raise CutError(
            f"{what} would send more than one value ({crossed}); the nearest clean cut is {offer}, or let "
            f"several cross (--allow-values {len(self._beside(node))})"
        )

    def _describe(self, node: fx.Node, cut: fx.Node) -> str:
        if node is self.input:
            front = self.front(cut)
            shapes = all(user.target in (getattr, "size", "dim") for user in node.users if user not in front)
            return f"{'the shape of ' if shapes else ''}the input '{node.name}'"
        if node.target is getattr:
            return f"{node.args[0]}.{node.args[1]}"
        return node_name(node)


class _SendableNodes(fx.Interpreter):
    """A run of a model that notes the nodes whose values may cross a cut."""

    def __init__(self, module: fx.GraphModule, rows: int) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._rows = rows
        self.nodes: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and note it if its value may be sent."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and tuple(value.shape[:1]) == (self._rows,):
            self.nodes.add(n)
        return value


def vocabulary(traced: nn.Module) -> int | None:
    """Return how many rows the embedding has that takes a traced model's input, or None if it takes real numbers."""
    if not isinstance(traced, fx.GraphModule):
        return None
    for node in traced.graph.nodes:
        if node.op != "placeholder":
            continue
        for user in node.users:
            if user.target is torch.ops.aten.embedding.default and isinstance(user.args[0], fx.Node):
                path, _, name = str(user.args[0].target).rpartition(".")
                return len(getattr(traced.get_submodule(path), name))
            layer = traced.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
                return layer.num_embeddings
    return None
