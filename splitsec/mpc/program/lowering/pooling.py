"""Lowering pooling; one dimension is two with a height of one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.activations import options_of
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.program.program import Shape

_MAX = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG = "kernel_size stride padding ceil_mode count_include_pad divisor_override"


def _two(call: Call, dims: int, value: Any, flat: int) -> Shape:
    """Return an option as two numbers; with one dimension `flat` is that of the height."""
    parts = (int(value),) if isinstance(value, int) else tuple(int(part) for part in value)
    parts = parts * dims if len(parts) == 1 else parts
    if len(parts) != dims:
        raise UnsupportedLayerError(f"layer '{call.name}' takes {dims} numbers for an option, not {len(parts)}")
    return parts if dims == 2 else (flat, *parts)


def _batched(lowering: Lowering, call: Call, dims: int) -> tuple[Shared, Shape]:
    """Return the input with four dimensions, and the shape of the result with as many."""
    x, shape = call.first, lowering.shape_of(call)
    if len(x.shape) != dims + 2:
        raise UnsupportedLayerError(
            f"layer '{call.name}' pools {len(x.shape)} dimensions; give it batch, channels and {dims}"
        )
    if dims == 2:
        return x, shape
    return lowering.reshape(call.name, x, (*x.shape[:2], 1, x.shape[2])), (*shape[:2], 1, shape[2])


def _max_pool(dims: int) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        options = options_of(call, _MAX, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
        if options["return_indices"]:
            raise UnsupportedLayerError(f"layer '{call.name}' returns indices, which would show where the largest are")
        x, shape = _batched(lowering, call, dims)
        kernel = _two(call, dims, options["kernel_size"], 1)
        output = lowering.emit(
            "max_pool2d",
            call.name,
            (x,),
            shape,
            kernel=kernel,
            stride=_two(call, dims, options["stride"] or options["kernel_size"], 1),
            padding=_two(call, dims, options["padding"], 0),
            dilation=_two(call, dims, options["dilation"], 1),
            ceil=bool(options["ceil_mode"]),
        )
        return lowering.reshape(call.name, output, lowering.shape_of(call))

    return lower


def _avg_pool(dims: int) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        options = options_of(
            call, _AVG, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
        )
        x, shape = _batched(lowering, call, dims)
        output = lowering.emit(
            "avg_pool2d",
            call.name,
            (x,),
            shape,
            kernel=_two(call, dims, options["kernel_size"], 1),
            stride=_two(call, dims, options["stride"] or options["kernel_size"], 1),
            padding=_two(call, dims, options["padding"], 0),
            ceil=bool(options["ceil_mode"]),
            padded=bool(options["count_include_pad"]),
            divisor=int(options.get("divisor_override") or 0),
        )
        return lowering.reshape(call.name, output, lowering.shape_of(call))

    return lower


def _adaptive_avg_pool(dims: int) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        x, shape = _batched(lowering, call, dims)
        before, after = x.shape[-2:], shape[-2:]
        if all(big % small == 0 for big, small in zip(before, after, strict=True)):
            kernel = tuple(big // small for big, small in zip(before, after, strict=True))
            output = lowering.emit("avg_pool2d", call.name, (x,), shape, kernel=kernel, stride=kernel)
        else:
            # The largest window: one more than an even share.
            kernel = tuple(-(-big // small) + 1 for big, small in zip(before, after, strict=True))
            output = lowering.emit("adaptive_avg_pool2d", call.name, (x,), shape, kernel=kernel)
        return lowering.reshape(call.name, output, lowering.shape_of(call))

    return lower


_MODULES: dict[type[nn.Module], Lower] = {
    nn.MaxPool1d: _max_pool(1),
    nn.MaxPool2d: _max_pool(2),
    nn.AvgPool1d: _avg_pool(1),
    nn.AvgPool2d: _avg_pool(2),
    nn.AdaptiveAvgPool1d: _adaptive_avg_pool(1),
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool(2),
}
_FUNCTIONS: dict[Any, Lower] = {
    F.max_pool1d: _max_pool(1),
    torch.max_pool1d: _max_pool(1),
    F.max_pool2d: _max_pool(2),
    torch.max_pool2d: _max_pool(2),
    F.avg_pool1d: _avg_pool(1),
    F.avg_pool2d: _avg_pool(2),
    F.adaptive_avg_pool1d: _adaptive_avg_pool(1),
    F.adaptive_avg_pool2d: _adaptive_avg_pool(2),
}
LOWERINGS.register("pooling")(Tables(_MODULES, _FUNCTIONS, {}))
