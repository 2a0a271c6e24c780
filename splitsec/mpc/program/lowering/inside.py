"""Layers of a user's own that are called as they are (`trace`): what they do in eval mode."""

from __future__ import annotations

import torch
from torch import fx, nn

from splitsec.cut.tracing import trace_in_eval
from splitsec.errors import CutError, UnsupportedLayerError, first_line
from splitsec.mpc.program.program import Shape
from splitsec.mpc.program.shapes import ShapeNotes

_LIBRARIES = ("torch.", "torchvision.")


def is_own(layer: nn.Module) -> bool:
    """Whether a layer is of no library whose layers have forms, or none, of their own."""
    return not type(layer).__module__.startswith(_LIBRARIES)


def graph_of(layer: nn.Module, name: str, shape: Shape, dtype: torch.dtype) -> fx.GraphModule:
    """Return what a layer in eval mode does to one value of a shape; its nodes know their shapes.

    Raises:
        UnsupportedLayerError: no graph says it.
    """
    described = f"layer '{name}' ({type(layer).__name__}) has no encrypted form"
    try:
        graph = trace_in_eval(layer)
    except CutError as error:
        raise UnsupportedLayerError(f"{described}: {error}") from error
    x = torch.linspace(-1.0, 1.0, max(1, torch.Size(shape).numel())).to(dtype).view(shape)
    with torch.no_grad():
        try:
            output, expected = ShapeNotes(graph).run(x.clone()), layer(x.clone())
        except Exception as error:  # a user's layer raises what it likes
            raise UnsupportedLayerError(f"{described}: {first_line(error)}") from error
    if not isinstance(expected, torch.Tensor) or expected.shape != output.shape or not torch.allclose(output, expected):
        raise UnsupportedLayerError(f"{described}: it does something that a graph does not see; keep it in the front")
    return graph
