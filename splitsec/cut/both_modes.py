"""One graph for both modes, of a graph traced in eval mode and another traced in training."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

import torch
from torch import fx

from splitsec.cut.mode_switch import ByMode
from splitsec.cut.results import nodes_in
from splitsec.cut.tracer import UntraceableError


def join_modes(
    joined: fx.GraphModule, training: fx.Graph, constants: Mapping[bool, Mapping[str, torch.Tensor]]
) -> None:
    """Make `joined`, traced in eval mode, do in training what `training` does.

    Args:
        constants: those of the forward in training and in eval mode, by the target of their nodes.

    Raises:
        UntraceableError: the graphs differ in more than arguments.
    """
    in_eval, in_training = list(joined.graph.nodes), list(training.nodes)
    longer = len(in_training) > len(in_eval)
    for node, other in zip_longest(in_eval, in_training):
        if node is None or other is None or not _alike(node, other, constants):
            raise _differs_in_training(node, other, longer=longer)
    partner = dict(zip(in_training, in_eval, strict=True))
    for node, other in zip(in_eval, in_training, strict=True):
        args, kwargs = fx.map_arg((other.args, other.kwargs), partner.__getitem__)
        if (args, kwargs) == (node.args, node.kwargs):
            continue
        inputs = list(node.all_input_nodes)
        if node.op not in ("call_function", "call_method") or set(nodes_in((args, kwargs))) != set(inputs):
            raise _differs_in_training(node, other, longer=True)
        path = node.name if not hasattr(joined, node.name) else f"{node.name}_by_mode"
        joined.add_module(path, ByMode(node.target, (args, kwargs), (node.args, node.kwargs), inputs))
        with joined.graph.inserting_after(node):
            by_mode = joined.graph.call_module(path, tuple(inputs))
        by_mode.meta.update(node.meta)
        partner[other] = by_mode
        node.replace_all_uses_with(by_mode)
        joined.graph.erase_node(node)


def _differs_in_training(node: fx.Node | None, other: fx.Node | None, *, longer: bool) -> UntraceableError:
    """Blame the first difference on the module that has a step more than in the other mode.

    Args:
        node, other: the first nodes that differ, in eval mode and in training; None behind the end of a graph.
        longer: whether the graph of training is the longer one.
    """
    first, second = (other, node) if longer else (node, other)
    blamed = first if first is not None else second
    assert blamed is not None
    paths = [owner(step) for step in (first, second) if step is not None]
    # A step of the module around another module says nothing of that one.
    inner = len(paths) == 2 and paths[1].startswith(f"{paths[0]}." if paths[0] else "")
    place = blamed.meta.get("place", "")
    return UntraceableError(
        (paths[1] if inner else paths[0]) or paths[0],
        f"it computes otherwise in training{f', at {place}' if place else ''} (its forward uses self.training)",
        "use modules such as nn.Dropout, which know their mode, or put what differs into an nn.Module of its own, "
        "which is then called as it is",
    )


def _alike(node: fx.Node, other: fx.Node, constants: Mapping[bool, Mapping[str, torch.Tensor]]) -> bool:
    """Say whether a node in eval mode and another in training do the same, whatever their arguments are."""
    if node.op == other.op == "output":
        return True
    if node.meta.get("grad", True) != other.meta.get("grad", True):
        return False
    if node.op == other.op == "get_attr" and str(other.target) in constants[True]:
        # Constants of the forward are numbered anew in each trace.
        in_eval, in_training = constants[False].get(str(node.target)), constants[True][str(other.target)]
        same = in_eval is in_training
        return same or (in_eval is not None and not in_eval.is_meta and torch.equal(in_eval, in_training))
    return node.op == other.op and node.target == other.target


def owner(node: fx.Node) -> str:
    """Return the path of the module whose forward makes a node."""
    return next(reversed(containers(node)), "")


def containers(node: fx.Node) -> list[str]:
    """Return the paths of the modules that a node lies in, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry, tuple) and entry and entry[0]]
    return [path for path in paths if path != node.target]
