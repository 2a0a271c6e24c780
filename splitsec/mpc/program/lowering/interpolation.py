"""Lowering interpolation, which is linear and takes one dimension after the other.

The nearest elements are taken as they are. What weighs several elements is a product with a matrix for each dimension,
which torch's own function gives when it is applied to the unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables

_TAKING = ("nearest", "nearest-exact")
_WEIGHING = ("linear", "bilinear", "bicubic", "trilinear", "area")


def _layer(lowering: Lowering, call: Call) -> Shared:
    return _interpolated(lowering, call, call.first, call.layer.mode, call.layer)


def _function(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "input size scale_factor mode align_corners recompute_scale_factor antialias", mode="nearest", antialias=False
    )
    if options["antialias"]:
        raise UnsupportedLayerError(f"'{call.name}' interpolates with antialias=True; leave it out")
    rest = {name: value for name, value in options.items() if name != "input"}
    return _interpolated(lowering, call, options["input"], options["mode"], lambda value: F.interpolate(value, **rest))


def _operation(mode: str) -> Lower:
    """ATen's: the sizes or factors follow the input, and `align_corners` where the mode has it."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        args, kwargs = call.args[1:], call.kwargs
        return _interpolated(lowering, call, call.first, mode, lambda value: call.target(value, *args, **kwargs))

    return lower


def _interpolated(
    lowering: Lowering, call: Call, x: Shared, mode: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> Shared:
    """Interpolate the dimensions behind the channels as `function` does."""
    if mode not in (*_TAKING, *_WEIGHING):
        raise UnsupportedLayerError(f"layer '{call.name}' interpolates by '{mode}'; use mode='nearest' or 'bilinear'")
    shape, before = lowering.shape_of(call), x.shape[2:]
    for dim in range(2, len(shape)):
        matrix = _matrix(function, before, shape[2:], dim - 2)
        x = (
            _taken(lowering, call.name, x, dim, matrix)
            if mode in _TAKING
            else _weighed(lowering, call.name, x, dim, matrix)
        )
    return x


def _matrix(
    function: Callable[[torch.Tensor], torch.Tensor], before: tuple[int, ...], after: tuple[int, ...], dim: int
) -> torch.Tensor:
    """Return the matrix (after, before) of one dimension: what the function makes of each unit vector along it.

    Constant along the other dimensions, which stay so.
    """
    size = before[dim]
    spread = [-1 if at == dim else 1 for at in range(len(before))]
    units = torch.stack([unit.view(spread).expand(before) for unit in torch.eye(size)])[:, None]
    outputs = function(units)[:, 0].movedim(dim + 1, 1).reshape(size, after[dim], -1)[:, :, 0]
    assert outputs.shape == (size, after[dim])
    return outputs.t().double()


def _taken(lowering: Lowering, name: str, x: Shared, dim: int, matrix: torch.Tensor) -> Shared:
    shape = [*x.shape[:dim], len(matrix), *x.shape[dim + 1 :]]
    return lowering.emit("gather", name, (x,), shape, dim=dim, index=tuple(matrix.argmax(1).tolist()))


def _weighed(lowering: Lowering, name: str, x: Shared, dim: int, matrix: torch.Tensor) -> Shared:
    if matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix)).double()):
        return x
    order = [*(at for at in range(len(x.shape)) if at != dim), dim]
    turned = lowering.permute(name, x, order)
    shape = (*turned.shape[:-1], len(matrix))
    product = lowering.emit_weights("linear", name, turned, shape, matrix, torch.zeros(len(matrix)))
    return lowering.permute(name, product, [order.index(at) for at in range(len(order))])


_MODES = {
    **{f"upsample_nearest{dims}d": "nearest" for dims in (1, 2, 3)},
    **{f"_upsample_nearest_exact{dims}d": "nearest-exact" for dims in (1, 2, 3)},
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "bilinear",
    "upsample_bicubic2d": "bicubic",
    "upsample_trilinear3d": "trilinear",
}
LOWERINGS.register("interpolation")(
    Tables(
        dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _layer),
        {F.interpolate: _function},
        operations={name: _operation(mode) for name, mode in _MODES.items()},
    )
)
