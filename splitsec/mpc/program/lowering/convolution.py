"""Lowering convolutions of one, two and three dimensions, and transposed ones.

One dimension is two with a height of one. Three are two, for as many slices of a volume as a kernel is deep, which
become channels. A transposed convolution is a convolution of the input with zeros between its elements (V. Dumoulin and
F. Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables


@dataclass(frozen=True)
class _Convolution:
    """A convolution's weights and numbers, as torch takes them."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


def _convolution(lowering: Lowering, call: Call, x: Shared, options: _Convolution) -> Shared:
    """Convolve in one, two or three dimensions."""
    dims = options.weight.dim() - 2
    if len(x.shape) != dims + 2:
        raise UnsupportedLayerError(f"'{call.name}' takes a batch: give it {dims + 2} dimensions, not {len(x.shape)}")
    stride, dilation = _spread(options.stride, dims), _spread(options.dilation, dims)
    before, after = _paddings(options.padding, options.weight.shape[2:], dilation)
    sizes = tuple(zip(before, after, strict=True))
    return _convolved(lowering, call.name, x, options, _Sizes(stride, dilation, sizes), lowering.shape_of(call))


@dataclass(frozen=True)
class _Sizes:
    """A convolution's numbers for each dimension; of the padding, before and after."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


def _convolved(
    lowering: Lowering, name: str, x: Shared, options: _Convolution, sizes: _Sizes, shape: Sequence[int]
) -> Shared:
    """Return a convolution's output of a shape, as one step of two dimensions."""
    weight, (stride, dilation, padding) = options.weight, (sizes.stride, sizes.dilation, sizes.padding)
    output_shape = tuple(shape)
    if weight.dim() == 3:
        x = lowering.reshape(name, x, (*x.shape[:2], 1, x.shape[2]))
        weight, output_shape = weight[:, :, None], (*shape[:2], 1, shape[2])
        stride, dilation, padding = (1, *stride), (1, *dilation), ((0, 0), *padding)
    elif weight.dim() == 5:
        x = _slices(lowering, name, x, _Depth(weight.shape[2], stride[0], dilation[0], padding[0]), shape[2])
        weight = weight.flatten(1, 2)
        output_shape = (shape[0] * shape[2], shape[1], *shape[3:])
        stride, dilation, padding = stride[1:], dilation[1:], padding[1:]
    before = tuple(ends[0] for ends in padding)
    if any(first != last for first, last in padding) or min(before) < 0:
        ends = (*padding[1], *padding[0])
        wide = [size + sum(pads) for size, pads in zip(x.shape[2:], padding, strict=True)]
        x = lowering.emit("pad", name, (x,), (*x.shape[:2], *wide), padding=ends)
        before = (0, 0)
    output = lowering.emit_weights(
        "conv2d",
        name,
        x,
        output_shape,
        weight,
        torch.zeros(weight.shape[0]) if options.bias is None else options.bias,
        stride=stride,
        padding=before,
        dilation=dilation,
        groups=options.groups,
    )
    if options.weight.dim() == 5:
        apart = (shape[0], shape[2], shape[1], *shape[3:])
        return lowering.permute(name, lowering.reshape(name, output, apart), (0, 2, 1, 3, 4))
    return lowering.reshape(name, output, shape)


@dataclass(frozen=True)
class _Depth:
    """A convolution's numbers in the first of three dimensions."""

    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]


def _slices(lowering: Lowering, name: str, x: Shared, depth: _Depth, count: int) -> Shared:
    """Return, for each of `count` slices of the output, the slices of the input (N, C, D, H, W) that it is made of.

    Of shape (N * count, C * kernel, H, W).
    """
    samples, channels, size, *area = x.shape
    if depth.padding != (0, 0):
        size += sum(depth.padding)
        x = lowering.emit("pad", name, (x,), (samples, channels, size, *area), padding=(0, 0, 0, 0, *depth.padding))
    index = [at * depth.stride + part * depth.dilation for at in range(count) for part in range(depth.kernel)]
    wide = (samples, channels, len(index), *area)
    if index != list(range(size)):
        x = lowering.emit("gather", name, (x,), wide, dim=2, index=tuple(index))
    x = lowering.reshape(name, x, (samples, channels, count, depth.kernel, *area))
    x = lowering.permute(name, x, (0, 2, 1, 3, 4, 5))
    return lowering.reshape(name, x, (samples * count, channels * depth.kernel, *area))


def _transposed(lowering: Lowering, call: Call, x: Shared, options: _Convolution, extra: Any) -> Shared:
    """Convolve the input, spread by the stride, with the kernel turned round.

    Args:
        options: the weight is (in, out / groups, ...), as torch has it.
        extra: torch's `output_padding`.
    """
    weight, groups = options.weight.detach(), options.groups
    dims = weight.dim() - 2
    if len(x.shape) != dims + 2:
        raise UnsupportedLayerError(f"'{call.name}' takes a batch: give it {dims + 2} dimensions, not {len(x.shape)}")
    stride, dilation = _spread(options.stride, dims), _spread(options.dilation, dims)
    padding, added = _spread(options.padding, dims), _spread(extra, dims)
    for dim in range(dims):
        x = _spaced(lowering, call.name, x, dim + 2, stride[dim])
    turned = weight.flip(tuple(range(2, dims + 2)))
    # (in, out / groups, ...) becomes (out, in / groups, ...), group by group.
    turned = torch.cat([part.transpose(0, 1) for part in turned.chunk(groups)])
    whole = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    ends = tuple((reach - pad, reach - pad + more) for reach, pad, more in zip(whole, padding, added, strict=True))
    plain = _Convolution(turned, options.bias, groups=groups)
    return _convolved(lowering, call.name, x, plain, _Sizes((1,) * dims, dilation, ends), lowering.shape_of(call))


def _spaced(lowering: Lowering, name: str, x: Shared, dim: int, stride: int) -> Shared:
    """Put `stride - 1` zeros between the elements of a dimension."""
    if stride == 1:
        return x
    size = x.shape[dim]
    ends = [0] * (2 * (len(x.shape) - dim))
    # torch names the last dimension's ends first.
    ends[-1] = 1
    wide = [*x.shape[:dim], size + 1, *x.shape[dim + 1 :]]
    x = lowering.emit("pad", name, (x,), wide, padding=tuple(ends))
    index = [at // stride if at % stride == 0 else size for at in range((size - 1) * stride + 1)]
    return lowering.emit(
        "gather", name, (x,), [*x.shape[:dim], len(index), *x.shape[dim + 1 :]], dim=dim, index=tuple(index)
    )


def _paddings(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if padding == "same":
        whole = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return tuple(size // 2 for size in whole), tuple(size - size // 2 for size in whole)
    pads = (0,) * len(kernel) if padding == "valid" else _spread(padding, len(kernel))
    return pads, pads


def _spread(value: Any, dims: int) -> tuple[int, ...]:
    parts = (int(value),) if isinstance(value, int) else tuple(int(part) for part in value)
    return parts * dims if len(parts) == 1 else parts


def _conv_layer(lowering: Lowering, call: Call) -> Shared:
    layer, x, padding = call.layer, call.first, call.layer.padding
    if layer.padding_mode != "zeros":
        # As torch has it: the border is padded first.
        before, after = _paddings(padding, layer.kernel_size, layer.dilation)
        pads = [size for pair in reversed(list(zip(before, after, strict=True))) for size in pair]
        sizes = zip(x.shape[-len(before) :], before, after, strict=True)
        shape = (*x.shape[: -len(before)], *(size + low + high for size, low, high in sizes))
        padded = replace(call, target=F.pad, layer=None, args=(x, pads, layer.padding_mode), kwargs={}, shape=shape)
        x, padding = lowering.lower_as(F.pad, padded), 0
    options = _Convolution(layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)
    return _convolution(lowering, call, x, options)


def _transposed_layer(lowering: Lowering, call: Call) -> Shared:
    layer = call.layer
    if len(call.args) > 1 or call.kwargs:
        raise UnsupportedLayerError(f"layer '{call.name}' is called with an output_size; give it output_padding")
    options = _Convolution(layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return _transposed(lowering, call, call.first, options, layer.output_padding)


def _transposed_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "input weight bias stride padding output_padding groups dilation",
        bias=None,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        dilation=1,
    )
    _check_weight(call, options["weight"])
    x, extra = options.pop("input"), options.pop("output_padding")
    return _transposed(lowering, call, x, _Convolution(**options), extra)


def _check_weight(call: Call, weight: Any) -> None:
    if not isinstance(weight, torch.Tensor):
        raise UnsupportedLayerError(f"'{call.name}' has a weight that depends on the input; no encrypted form for that")


def _conv_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "input weight bias stride padding dilation groups", bias=None, stride=1, padding=0, dilation=1, groups=1
    )
    _check_weight(call, options["weight"])
    x = options.pop("input")
    return _convolution(lowering, call, x, _Convolution(**options))


_MODULES: dict[type[nn.Module], Lower] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_layer),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_layer),
}
_FUNCTIONS: dict[Any, Lower] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _conv_function),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_function),
}
_OPERATIONS: dict[str, Lower] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv_function),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_function),
}
LOWERINGS.register("convolution")(Tables(_MODULES, _FUNCTIONS, operations=_OPERATIONS))
