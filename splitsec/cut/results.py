"""What a model returns: one tensor, perhaps wrapped in a dict or a tuple."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from splitsec.errors import CutError


class SeveralResultsError(CutError):
    """A model that returns several tensors, of which none is chosen."""


def one_tensor(result: Any) -> Any:
    """Return the only tensor in a dict, tuple or list, such as `{"logits": x}` and `(x, None)`; else the result."""
    values = _flat(result)
    return values[0] if len(values) == 1 and isinstance(values[0], torch.Tensor) else result


def nodes_in(value: Any) -> list[fx.Node]:
    """Return the nodes in nested arguments or results."""
    nodes: list[fx.Node] = []
    fx.map_arg(value, lambda node: nodes.append(node) or node)  # type: ignore[func-returns-value]
    return nodes


def describe_result(value: Any) -> str:
    """Describe a result in words: `a dict (logits, features)`."""
    if isinstance(value, Mapping):
        return f"a {'dict' if isinstance(value, dict) else type(value).__name__} ({', '.join(map(str, value))})"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a {type(value).__name__}"


def one_result(kind: str, result: Any) -> fx.Node:
    """Return the only node in what a traced model returns, as `one_tensor` does with the model's own result.

    Args:
        kind: the model's class, for messages.

    Raises:
        SeveralResultsError: there are several.
        CutError: there is none.
    """
    nodes = [leaf for leaf in _flat(result) if isinstance(leaf, fx.Node)]
    if len(nodes) == 1:
        return nodes[0]
    if not nodes:
        raise CutError(f"{kind} returns nothing that depends on its input")
    raise SeveralResultsError(
        f"{kind} returns {describe_result(result)}; say which is wanted behind its name, such as "
        f"`MODEL -> {next(iter(result)) if isinstance(result, Mapping) else 0}`, or give SplitModel an output"
    )


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for element in value.values() for leaf in _flat(element)]
    if isinstance(value, (tuple, list)):
        return [leaf for element in value for leaf in _flat(element)]
    return [] if value is None else [value]
