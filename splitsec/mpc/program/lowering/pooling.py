"""Lowering pooling; one dimension is two with a height of one, and three are two and then the first alone."""

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


def _pool_3d(kind: str) -> Lower:
    """Pool slices of a volume, then each column of slices: largest of the largest, or mean of the means."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        names = _MAX if kind == "max" else _AVG
        options = options_of(call, names, stride=None, padding=0, dilation=1, ceil_mode=False, count_include_pad=True)
        x, name = call.first, call.name
        if len(x.shape) != 5:
            raise UnsupportedLayerError(
                f"layer '{name}' pools {len(x.shape)} dimensions; give it batch, channels and 3"
            )
        if options["ceil_mode"] or options.get("divisor_override") or options.get("return_indices"):
            raise UnsupportedLayerError(
                f"layer '{name}' has ceil_mode, divisor_override or return_indices, which volumes have no form with; "
                "leave it out"
            )
        if kind == "avg" and any(_three(options["padding"])) and not options["count_include_pad"]:
            raise UnsupportedLayerError(f"layer '{name}' leaves padding out of its means; use count_include_pad=True")
        kernel, padding = _three(options["kernel_size"]), _three(options["padding"])
        stride, dilation = _three(options["stride"] or options["kernel_size"]), _three(options.get("dilation", 1))
        return _in_turn(lowering, call, f"{kind}_pool2d", (kernel, stride, padding, dilation))

    return lower


def _three(value: Any) -> tuple[int, ...]:
    parts = (int(value),) if isinstance(value, int) else tuple(int(part) for part in value)
    return parts * 3 if len(parts) == 1 else parts


def _in_turn(lowering: Lowering, call: Call, op: str, numbers: tuple[tuple[int, ...], ...]) -> Shared:
    """Pool height and width of every slice, then the slices.

    Args:
        numbers: kernel, stride, padding and dilation, three of each.
    """
    name, shape = call.name, lowering.shape_of(call)
    samples, channels, depth, *_ = call.first.shape
    names = ("kernel", "stride", "padding", "dilation")
    flat = lowering.reshape(name, call.first, (samples, channels * depth, *call.first.shape[3:]))
    area = dict(zip(names, [number[1:] for number in numbers], strict=True))
    x = lowering.emit(op, name, (flat,), (samples, channels * depth, *shape[3:]), **area)
    x = lowering.reshape(name, x, (samples, channels, depth, shape[3] * shape[4]))
    along = dict(
        zip(names, [(number[0], fill) for number, fill in zip(numbers, (1, 1, 0, 1), strict=True)], strict=True)
    )
    x = lowering.emit(op, name, (x,), (samples, channels, shape[2], shape[3] * shape[4]), **along)
    return lowering.reshape(name, x, shape)


def _adaptive_pool_3d(kind: str) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        before, after = call.first.shape[-3:], lowering.shape_of(call)[-3:]
        if any(big % small for big, small in zip(before, after, strict=True)) or len(call.first.shape) != 5:
            raise UnsupportedLayerError(
                f"layer '{call.name}' takes windows of {'x'.join(map(str, before))} to {'x'.join(map(str, after))}, of "
                "several sizes; use sizes that divide"
            )
        kernel = tuple(big // small for big, small in zip(before, after, strict=True))
        return _in_turn(lowering, call, f"{kind}_pool2d", (kernel, kernel, (0, 0, 0), (1, 1, 1)))

    return lower


_MODULES: dict[type[nn.Module], Lower] = {
    nn.MaxPool1d: _max_pool(1),
    nn.MaxPool2d: _max_pool(2),
    nn.AvgPool1d: _avg_pool(1),
    nn.AvgPool2d: _avg_pool(2),
    nn.AdaptiveAvgPool1d: _adaptive_avg_pool(1),
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool(2),
    nn.MaxPool3d: _pool_3d("max"),
    nn.AvgPool3d: _pool_3d("avg"),
    nn.AdaptiveAvgPool3d: _adaptive_pool_3d("avg"),
    nn.AdaptiveMaxPool3d: _adaptive_pool_3d("max"),
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
    F.max_pool3d: _pool_3d("max"),
    torch.max_pool3d: _pool_3d("max"),
    F.avg_pool3d: _pool_3d("avg"),
    F.adaptive_avg_pool3d: _adaptive_pool_3d("avg"),
    F.adaptive_max_pool3d: _adaptive_pool_3d("max"),
}
LOWERINGS.register("pooling")(Tables(_MODULES, _FUNCTIONS, {}))
