"""Regions without gradients: `with torch.no_grad():` inside a forward.

torch.fx records what is computed there and not that gradients are off. So whatever leaves such a region is detached,
which has the same effect: nothing inside it gets a gradient.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from splitsec.cut.in_place import overwritten
from splitsec.cut.tracer import UntraceableError

_COMPUTING = ("call_module", "call_function", "call_method")
_SIZES = ("size", "dim", "numel", "ndimension", "stride")


def without_gradient(value: Any) -> Any:
    """Return a value, or several, through which no gradient passes."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        # Torch's named tuples, such as the result of `max`, are made of one sequence as well.
        return type(value)([without_gradient(element) for element in value])
    return value


def keep_regions(traced: fx.GraphModule) -> None:
    """Detach what leaves a region without gradients.

    Raises:
        UntraceableError: a value from outside is overwritten inside, so that it would keep its gradient.
    """
    for node in list(traced.graph.nodes):
        if not _inside(node) or _is_size(node):
            continue
        base = overwritten(traced, node)
        if base is not None and not _inside(base):
            place = node.meta.get("place", "")
            stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
            raise UntraceableError(
                str(stack[-1][0]),
                f"it overwrites '{base.name}' under torch.no_grad(){f' at {place}' if place else ''}",
                "write it without working in place",
            )
        leaving = [user for user in node.users if not _inside(user)]
        if not leaving:
            continue
        with traced.graph.inserting_after(node):
            barrier = traced.graph.call_function(without_gradient, (node,))
        barrier.meta.update({key: value for key, value in node.meta.items() if key == "nn_module_stack"})
        for user in leaving:
            user.replace_input_with(node, barrier)


def _inside(node: fx.Node) -> bool:
    return node.op in _COMPUTING and not node.meta.get("grad", True)


def _is_size(node: fx.Node) -> bool:
    """Say whether a node is a size of a tensor, or several sizes."""
    if node.op == "call_method":
        return node.target in _SIZES
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return _is_size(node.args[0])
    return node.target is getattr
