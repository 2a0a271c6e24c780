"""The cut points of a traced model: which nodes alone separate front from tail."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch import fx, nn

from splitsec.errors import CutError

# torch.fx puts wrappers around every module of the process while it traces: never two traces at once, and no module may
# run in another thread meanwhile, so split models before you start threads.
_tracing = threading.Lock()
# The cut before the first layer: the whole network is the tail.
INPUT = "input"


@dataclass(frozen=True)
class CutPoint:
    """A node whose value alone crosses from front to tail.

    `name` is what a user writes: the module's path where the node is a module call, else the graph node's name.
    """

    name: str
    node: fx.Node


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model` symbolically with torch.fx; raises `CutError` where its control flow depends on data."""
    if isinstance(model, fx.GraphModule):
        return model
    modes = {module: module.training for module in model.modules()}
    try:
        with _tracing:
            traced, other = fx.symbolic_trace(model), fx.symbolic_trace(model.train(not model.training))
    except Exception as error:  # torch.fx raises many kinds, all of them about the user's model
        reason = str(error).splitlines()[0]
        raise CutError(f"{type(model).__name__} cannot be traced by torch.fx: {reason}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if str(traced.graph) != str(other.graph):
        raise CutError(
            f"{type(model).__name__} computes otherwise in training (its forward uses self.training); use modules "
            "such as nn.Dropout, which know their mode"
        )
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise CutError(f"{type(model).__name__} takes {len(inputs)} inputs; a model to be cut takes one tensor")
    return traced


def node_name(node: fx.Node) -> str:
    """The name by which a user refers to a node."""
    return str(node.target) if node.op == "call_module" else node.name


def crossing(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """The values that a cut after `cut` would send: made up to it and used after it, `cut` included."""
    nodes = list(graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    at = position[cut]
    ancestors = front_nodes(cut)
    front = {node for node in nodes if node in ancestors or (node.op == "get_attr" and position[node] <= at)}
    return [
        node
        for node in nodes
        if node in front and node.op != "get_attr" and any(user not in front for user in node.users)
    ]


def cut_points(traced: fx.GraphModule) -> list[CutPoint]:
    """Every clean cut of the model in its own order; the input and the output are none."""
    found: list[CutPoint] = []
    seen: set[str] = set()
    for node in traced.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        if any(user.op == "output" for user in node.users) or crossing(traced.graph, node) != [node]:
            continue
        name = node_name(node)
        if name in seen:
            name = node.name
        seen.add(name)
        found.append(CutPoint(name, node))
    return found


def find_cut(traced: fx.GraphModule, name: str) -> CutPoint:
    """The clean cut called `name`: a module path (a container's stands for its last call) or a graph node.

    Raises:
        CutError: no such node (lists the valid ones), or more than one value crosses (names them and the nearest).
    """
    points = cut_points(traced)
    if name == INPUT:
        return CutPoint(INPUT, next(node for node in traced.graph.nodes if node.op == "placeholder"))
    for point in points:
        if name in (point.name, point.node.name):
            return point
    inside = [point for point in points if point.name.startswith(name + ".")]
    calls = [node for node in traced.graph.nodes if node_name(node) == name or node.name == name]
    calls += [node for node in traced.graph.nodes if node_name(node).startswith(name + ".")]
    calls += [node for node in traced.graph.nodes if _within(node, name)]
    valid = ", ".join(point.name for point in points) or "none"
    if not calls:
        raise CutError(f"there is no cut '{name}'; the valid cuts are: {valid}")
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    last = max(calls, key=order.__getitem__)
    for point in points:
        if point.node is last:
            return CutPoint(name, last)
    if any(user.op == "output" for user in last.users):
        raise CutError(f"a cut after '{name}' would leave nothing for the server; the valid cuts are: {valid}")
    crossed = ", ".join(node_name(node) for node in crossing(traced.graph, last))
    near = sorted(points, key=lambda point: abs(order[point.node] - order[last]))[:2]
    offer = " or ".join(f"'{point.name}'" for point in (inside[-1:] or near)) or "none"
    raise CutError(f"a cut after '{name}' would send more than one value ({crossed}); the nearest clean cut is {offer}")


def front_nodes(cut: fx.Node) -> set[fx.Node]:
    """What the front computes: the cut and all that it depends on."""
    found: set[fx.Node] = set()
    waiting = [cut]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def _within(node: fx.Node, path: str) -> bool:
    stack = node.meta.get("nn_module_stack") or {}
    return any(isinstance(entry, tuple) and entry and entry[0] == path for entry in stack.values())
