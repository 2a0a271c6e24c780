"""What a model returns: one tensor, perhaps wrapped in a dict or a tuple."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


def one_tensor(result: Any) -> Any:
    """The only tensor in a dict, tuple or list, such as `{"logits": x}` and `(x, None)`; anything else as it is."""
    found = _flat(result)
    return found[0] if len(found) == 1 and isinstance(found[0], torch.Tensor) else result


def nodes_in(value: Any) -> list[fx.Node]:
    """The nodes in nested arguments or results."""
    found: list[fx.Node] = []
    fx.map_arg(value, lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return found


def describe_result(value: Any) -> str:
    """A result in words: `a dict (logits, features)`."""
    if isinstance(value, Mapping):
        return f"a {'dict' if isinstance(value, dict) else type(value).__name__} ({', '.join(map(str, value))})"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    return f"a {type(value).__name__}"


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _flat(part)]
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in _flat(part)]
    return [] if value is None else [value]
