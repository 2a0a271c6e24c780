"""Lowering magnitudes and extremes: a ReLU of a difference for two values, pooling for a dimension."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.activations import relu
from splitsec.mpc.program.lowering.arithmetic import add, negative
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables


def magnitude(lowering: Lowering, name: str, x: Shared) -> Shared:
    """Return |x|: 2 relu(x) - x."""
    twice = lowering.affine(name, relu(lowering, name, x), 2.0)
    return add(lowering, name, twice, negative(lowering, name, x), x.shape)


def _abs(lowering: Lowering, call: Call) -> Shared:
    return magnitude(lowering, call.name, call.first)


def _extreme(sign: float) -> Lower:
    """Return the larger of two values, or the smaller: b + relu(a - b), or b - relu(b - a)."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        name, shape = call.name, lowering.shape_of(call)
        options = call.options(f"{'self' if isinstance(call.target, str) else 'input'} other")
        left, right = list(options.values())[:2]
        if not isinstance(left, Shared):
            left, right = right, left
        opposite = negative(lowering, name, right) if isinstance(right, Shared) else -_real(right)
        difference = add(lowering, name, left, opposite, shape)
        above = relu(lowering, name, lowering.affine(name, difference, sign))
        right = right if isinstance(right, Shared) else _real(right)
        return add(lowering, name, lowering.affine(name, above, sign), right, shape)

    return lower


def _real(value: Any) -> Any:
    return value.detach().double() if isinstance(value, torch.Tensor) else float(value)


def _largest(lowering: Lowering, name: str, x: Shared, dims: Sequence[int], *, keep: bool, sign: float) -> Shared:
    """Return the largest over dimensions, by max pooling a window of them all; the smallest is that of the negative."""
    rest = [dim for dim in range(len(x.shape)) if dim not in dims]
    length = math.prod(x.shape[dim] for dim in dims)
    turned = lowering.permute(name, x if sign > 0 else negative(lowering, name, x), [*rest, *dims])
    others = math.prod(x.shape[dim] for dim in rest[1:])
    first = x.shape[rest[0]] if rest else 1
    flat = lowering.reshape(name, turned, (first, others, 1, length))
    window = {"kernel": (1, length), "stride": (1, length), "padding": (0, 0), "dilation": (1, 1)}
    output = lowering.emit("max_pool2d", name, (flat,), (first, others, 1, 1), **window)
    shape = [1 if dim in dims else size for dim, size in enumerate(x.shape) if keep or dim not in dims]
    output = lowering.reshape(name, output, shape)
    return output if sign > 0 else negative(lowering, name, output)


def _over_dimensions(sign: float) -> Lower:
    """amax and amin."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        options = call.options(
            f"{'self' if isinstance(call.target, str) else 'input'} dim keepdim", dim=(), keepdim=False
        )
        x, dim = call.first, options["dim"]
        dims = range(len(x.shape)) if dim in ((), None) else [dim] if isinstance(dim, int) else dim
        axes = sorted(int(dim) % len(x.shape) for dim in dims)
        if 0 in axes:
            raise UnsupportedLayerError(f"'{call.name}' compares the samples of a batch; name the other dimensions")
        return _largest(lowering, call.name, x, axes, keep=bool(options["keepdim"]), sign=sign)

    return lower


def _max_or_min(sign: float) -> Lower:
    """max and min: of two values, or over one dimension with the values alone."""

    def lower(lowering: Lowering, call: Call) -> Any:
        second = call.args[1] if len(call.args) > 1 else call.kwargs.get("other")
        if isinstance(second, (Shared, torch.Tensor)):
            return _extreme(sign)(lowering, call)
        options = call.options(
            f"{'self' if isinstance(call.target, str) else 'input'} dim keepdim", dim=None, keepdim=False
        )
        if options["dim"] is None:
            raise UnsupportedLayerError(f"'{call.name}' compares the samples of a batch; name a dimension")
        # Whoever uses the indices finds that there are none.
        return _over_dimensions(sign)(lowering, call), None

    return lower


def _adaptive_max_pool(dims: int) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        x, shape, name = call.first, lowering.shape_of(call), call.name
        before, after = x.shape[-dims:], shape[-dims:]
        if any(big % small for big, small in zip(before, after, strict=True)):
            raise UnsupportedLayerError(
                f"layer '{name}' takes windows of {'x'.join(map(str, before))} to {'x'.join(map(str, after))}, of "
                "several sizes; use sizes that divide, or nn.AdaptiveAvgPool2d"
            )
        kernel = tuple(big // small for big, small in zip(before, after, strict=True))
        kernel = kernel if dims == 2 else (1, *kernel)
        flat = x if dims == 2 else lowering.reshape(name, x, (*x.shape[:-1], 1, x.shape[-1]))
        output = lowering.emit(
            "max_pool2d",
            name,
            (flat,),
            shape if dims == 2 else (*shape[:-1], 1, shape[-1]),
            kernel=kernel,
            stride=kernel,
            padding=(0, 0),
            dilation=(1, 1),
        )
        return lowering.reshape(name, output, shape)

    return lower


_MODULES: dict[type[nn.Module], Lower] = {
    nn.AdaptiveMaxPool1d: _adaptive_max_pool(1),
    nn.AdaptiveMaxPool2d: _adaptive_max_pool(2),
}
_FUNCTIONS: dict[Callable[..., Any], Lower] = {
    torch.abs: _abs,
    operator.abs: _abs,
    torch.absolute: _abs,
    torch.maximum: _extreme(1.0),
    torch.minimum: _extreme(-1.0),
    torch.max: _max_or_min(1.0),
    torch.min: _max_or_min(-1.0),
    torch.amax: _over_dimensions(1.0),
    torch.amin: _over_dimensions(-1.0),
    F.adaptive_max_pool1d: _adaptive_max_pool(1),
    F.adaptive_max_pool2d: _adaptive_max_pool(2),
}
_METHODS: dict[str, Lower] = {
    "abs": _abs,
    "maximum": _extreme(1.0),
    "minimum": _extreme(-1.0),
    "max": _max_or_min(1.0),
    "min": _max_or_min(-1.0),
    "amax": _over_dimensions(1.0),
    "amin": _over_dimensions(-1.0),
}
LOWERINGS.register("extremes")(Tables(_MODULES, _FUNCTIONS, _METHODS))
