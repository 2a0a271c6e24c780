"""Lowering: which steps stand for which layers and functions of torch.

A layer without an encrypted form is refused by name, with the reason and what could take its place. One module a kind
of layers; each registers its tables.
"""

from __future__ import annotations

from torch import fx

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.advice import LOOKUPS, refusal
from splitsec.mpc.program.lowering.base import LOWERINGS, Lowering, Shared, Tables, all_tables

__all__ = ["LOWERINGS", "Lowering", "Shared", "Tables", "lower_tail", "refuse_lookups", "supported_layers"]


def lower_tail(tail: fx.GraphModule, input_shape: tuple[int, ...], precision: int) -> Lowering:
    """Return the steps and weights of a tail whose nodes know their shapes (`ShapeProp`).

    Raises:
        UnsupportedLayerError: a layer without an encrypted form, with its name.
        RangeError: a weight that is not finite or too large for fixed point, with its layer.
    """
    lowering = Lowering(tail, precision, all_tables())
    lowering.run(input_shape)
    return lowering


def refuse_lookups(tail: fx.GraphModule) -> None:
    """Refuse layers that take no real numbers: no example of an activation could be sent through them."""
    secret: set[fx.Node] = set()
    for node in tail.graph.nodes:
        if node.op == "placeholder" or (secret & set(node.all_input_nodes) and not _is_shape(node)):
            secret.add(node)
        if node not in secret:
            # A table of positions is looked up before anything is shared.
            continue
        if node.op == "call_module" and type(tail.get_submodule(str(node.target))).__name__ in LOOKUPS:
            kind = type(tail.get_submodule(str(node.target))).__name__
            raise UnsupportedLayerError(refusal(str(node.target), kind, tail, node))


def _is_shape(node: fx.Node) -> bool:
    """Say whether a node asks for a value's shape alone, which is public."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in ("size", "dim", "sym_size.int") or (name == "getattr" and node.args[1] in ("shape", "ndim"))


def supported_layers() -> list[str]:
    """Return the names of all layers of torch.nn and torchvision.ops that have an encrypted form."""
    tables = all_tables()
    return sorted([*(kind.__name__ for kind in tables.modules), *tables.torchvision])
