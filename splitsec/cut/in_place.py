"""Operations that overwrite a value, in a traced graph.

torch.fx records that `y.add_(1)` was called, not that `y` is another value from then on. Here later readers of `y` read
the operation's result instead, which is the same tensor; so the edges of a graph alone say what depends on what.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn

from splitsec.cut.mode_switch import ByMode
from splitsec.errors import CutError

# The class of torch's own operations, such as torch.ops.aten.relu.default.
AtenOperation: Any = type(torch.ops.aten.relu.default)
_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
# Functions, methods and layers whose result may share memory with their input.
_VIEW_NAMES = frozenset(
    (
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "permute", "transpose", "swapaxes", "t"),
        *("squeeze", "unsqueeze", "expand", "expand_as", "chunk", "split", "unbind", "narrow", "select", "detach"),
        *("contiguous", "float", "to", "getitem", "T", "mT", "diagonal", "unfold", "movedim"),
    )
)
_VIEW_LAYERS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, ByMode)


def follow_in_place(traced: fx.GraphModule) -> None:
    """Let later readers of an overwritten value read the operation that overwrote it.

    Raises:
        CutError: a view of the value is read later too, which no edge of the graph can say.
    """
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        base = overwritten(traced, node)
        if base is None:
            continue
        for other in _aliases(traced, base):
            late = [user for user in other.users if order[user] > order[node] and user is not node]
            if other is not base and other is not node and order[other] < order[node] and late:
                raise CutError(
                    f"'{node.name}' works in place on '{base.name}', of which '{other.name}', another view, is read "
                    "later; write it without working in place"
                )
        for user in [user for user in base.users if order[user] > order[node]]:
            user.replace_input_with(base, node)


def operation_name(node: fx.Node) -> str:
    """Return the name of the method, function or ATen operation that a node calls, without an overload's."""
    if isinstance(node.target, AtenOperation):
        return str(node.target._schema.name.partition("::")[2])
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def changes_attribute(node: fx.Node) -> bool:
    """Say whether a node is an ATen operation that changes a parameter, buffer or constant in place."""
    if not isinstance(node.target, AtenOperation) or not node.target._schema.is_mutable:
        return bool(node.meta.get("changes"))
    return isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr"


def changed_attribute(model: nn.Module, node: fx.Node) -> str:
    """Return the path of the model's parameter, buffer or constant that a node overwrites; empty if there is none."""
    for base in (node.kwargs.get("out"), overwritten(model, node)):
        for other in sorted(_aliases(model, base)) if isinstance(base, fx.Node) else ():
            if other.op == "get_attr":
                return str(other.target)
    return ""


def overwritten(traced: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the value that a node overwrites; None if it overwrites none."""
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node):
        return None
    if node.op == "call_module":
        layer = traced.get_submodule(str(node.target))
        return first if getattr(layer, "inplace", False) is True else None
    name = operation_name(node)
    by_name = name.endswith("_") and not name.endswith("__")
    return first if node.target in _OPERATORS or by_name or _flagged(node) else None


def _flagged(node: fx.Node) -> bool:
    """Say whether a function was called with `inplace=True`, by name or by place."""
    if node.op != "call_function" or not callable(node.target):
        return False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return node.kwargs.get("inplace") is True
    return bound.arguments.get("inplace") is True


def _aliases(traced: nn.Module, node: fx.Node) -> set[fx.Node]:
    """Return all nodes that may share memory with `node`."""
    aliases, waiting = set(), [node]
    while waiting:
        alias = waiting.pop()
        if alias in aliases:
            continue
        aliases.add(alias)
        if _is_view(traced, alias):
            waiting.extend(alias.all_input_nodes)
        waiting.extend(user for user in alias.users if _is_view(traced, user))
    return aliases


def _is_view(traced: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), _VIEW_LAYERS)
    if node.target is getattr:
        return node.args[1] in _VIEW_NAMES
    name = operation_name(node)
    if isinstance(node.target, AtenOperation):
        aliases = [result.alias_info for result in node.target._schema.returns]
        return name in _VIEW_NAMES or any(alias is not None and not alias.is_write for alias in aliases)
    return name in _VIEW_NAMES or node.target in (torch.dropout, nn.functional.dropout)
