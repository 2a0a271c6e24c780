"""Lowering layers with weights: linear, convolution, batch norm, layer and group norm, PReLU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.program.program import Weights


def linear(lowering: Lowering, name: str, x: Shared, weight: torch.Tensor, bias: torch.Tensor | None) -> Shared:
    """x W' + b."""
    bias = torch.zeros(weight.shape[0]) if bias is None else bias
    return lowering.emit_weights("linear", name, x, (*x.shape[:-1], weight.shape[0]), weight, bias)


def _linear_layer(lowering: Lowering, call: Call) -> Shared:
    return linear(lowering, call.name, call.first, call.layer.weight, call.layer.bias)


def _linear_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options("input weight bias", bias=None)
    if not isinstance(options["weight"], torch.Tensor):
        raise UnsupportedLayerError(f"'{call.name}' has a weight that depends on the input; use torch.matmul")
    return linear(lowering, call.name, options["input"], options["weight"], options["bias"])


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
    """One or two dimensions; one is two with a height of one."""
    weight, bias = options.weight, options.bias
    dims = weight.dim() - 2
    if len(x.shape) != dims + 2:
        raise UnsupportedLayerError(f"'{call.name}' takes a batch: give it {dims + 2} dimensions, not {len(x.shape)}")
    stride, dilation = _spread(options.stride, dims), _spread(options.dilation, dims)
    before, after = _paddings(options.padding, weight.shape[2:], dilation)
    name, shape = call.name, lowering.shape_of(call)
    if dims == 1:
        x = lowering.reshape(name, x, (*x.shape[:2], 1, x.shape[2]))
        weight = weight[:, :, None]
        stride, dilation, before, after = (1, *stride), (1, *dilation), (0, *before), (0, *after)
    if before != after:
        ends = (before[1], after[1], before[0], after[0])
        sizes = [x.shape[2] + before[0] + after[0], x.shape[3] + before[1] + after[1]]
        x = lowering.emit("pad", name, (x,), (*x.shape[:2], *sizes), padding=ends)
        before = (0, 0)
    output = lowering.emit_weights(
        "conv2d",
        name,
        x,
        shape if dims == 2 else (*shape[:2], 1, shape[2]),
        weight,
        torch.zeros(weight.shape[0]) if bias is None else bias,
        stride=stride,
        padding=before,
        dilation=dilation,
        groups=options.groups,
    )
    return lowering.reshape(name, output, shape)


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
    layer = call.layer
    if layer.padding_mode != "zeros":
        raise UnsupportedLayerError(f"layer '{call.name}' pads with '{layer.padding_mode}'; use zero padding")
    options = _Convolution(layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return _convolution(lowering, call, call.first, options)


def _conv_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "input weight bias stride padding dilation groups", bias=None, stride=1, padding=0, dilation=1, groups=1
    )
    if not isinstance(options["weight"], torch.Tensor):
        raise UnsupportedLayerError(f"'{call.name}' has a weight that depends on the input; no encrypted form for that")
    x = options.pop("input")
    return _convolution(lowering, call, x, _Convolution(**options))


def scale(lowering: Lowering, name: str, x: Shared, factor: torch.Tensor, offset: torch.Tensor | None = None) -> Shared:
    """Element by element: x * factor + offset, both of the server's and broadcast to the shape of x."""
    factor, offset = torch.broadcast_tensors(factor, torch.zeros(1) if offset is None else offset)
    return lowering.emit_weights("scale", name, x, x.shape, factor.contiguous(), offset.contiguous())


def _batch_norm_layer(lowering: Lowering, call: Call) -> Shared:
    layer = call.layer
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedLayerError(
            f"layer '{call.name}' (batch norm) has no running statistics; give it track_running_stats=True"
        )
    weight, bias = (layer.weight, layer.bias) if layer.affine else (None, None)
    return _batch_norm(
        lowering, call, call.first, _folded(layer.running_mean, layer.running_var, weight, bias, layer.eps)
    )


def _batch_norm_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "input running_mean running_var weight bias training momentum eps",
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
    )
    if options["training"] or not isinstance(options["running_mean"], torch.Tensor):
        raise UnsupportedLayerError(f"'{call.name}' takes the batch's statistics; give it training=self.training")
    arguments = [options[name] for name in ("running_mean", "running_var", "weight", "bias", "eps")]
    return _batch_norm(lowering, call, options["input"], _folded(*arguments))


def _folded(
    mean: torch.Tensor, variance: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch norm as a factor and an offset of each channel, float64."""
    factor = (variance.detach().double() + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.detach().double()
    offset = -mean.detach().double() * factor
    return factor, offset if bias is None else offset + bias.detach().double()


def _batch_norm(lowering: Lowering, call: Call, x: Shared, folded: tuple[torch.Tensor, torch.Tensor]) -> Shared:
    factor, offset = folded
    # A convolution of one dimension ends in a reshape of its own, which has its name.
    number = x.number
    last = lowering.steps[number - 1] if number else None
    if last is not None and last.op == "reshape" and last.inputs == (number - 1,):
        number -= last.name == lowering.steps[number - 2].name
    layer = lowering.weights.get(number)
    # Whoever else uses the layer's output, directly or through an identity, wants it without the norm.
    users = [user for other, value in lowering.values.items() if value == x for user in other.users]
    alone = len([user for user in users if lowering.values.get(user) != x]) == 1
    channels = 1 if len(x.shape) > 1 else 0
    foldable = (
        layer is not None
        and alone
        and layer.weight.shape[0] == factor.numel()
        and x.number == len(lowering.steps)
        and (lowering.steps[number - 1].op == "conv2d" or (lowering.steps[-1].op == "linear" and len(x.shape) == 2))
    )
    if foldable:
        assert layer is not None
        weight = layer.weight.double() * factor.view(-1, *[1] * (layer.weight.dim() - 1))
        lowering.weights[number] = Weights(weight, layer.bias * factor + offset)
        return x
    shape = [-1, *[1] * (len(x.shape) - channels - 1)]
    return scale(lowering, call.name, x, factor.view(shape), offset.view(shape))


def _standardised(lowering: Lowering, name: str, x: Shared, rows: Sequence[int], eps: float) -> Shared:
    """Row by row, in the shape `rows`."""
    output = lowering.emit("standardise", name, (lowering.reshape(name, x, rows),), rows, low=float(eps))
    return lowering.reshape(name, output, x.shape)


def layer_norm(
    lowering: Lowering,
    name: str,
    x: Shared,
    dims: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> Shared:
    """Over the last `dims` dimensions."""
    kept = len(x.shape) - dims
    x = _standardised(lowering, name, x, (*x.shape[:kept], math.prod(x.shape[kept:])), eps)
    if weight is None and bias is None:
        return x
    weight = torch.ones(x.shape[kept:]) if weight is None else weight
    return scale(lowering, name, x, weight.detach().double(), None if bias is None else bias.detach().double())


def _layer_norm_layer(lowering: Lowering, call: Call) -> Shared:
    layer = call.layer
    return layer_norm(lowering, call.name, call.first, len(layer.normalized_shape), layer.weight, layer.bias, layer.eps)


def _layer_norm_function(lowering: Lowering, call: Call) -> Shared:
    names = "input normalized_shape weight bias eps cudnn_enable"
    options = call.options(names, weight=None, bias=None, eps=1e-5, cudnn_enable=True)
    dims = len(options["normalized_shape"])
    return layer_norm(lowering, call.name, options["input"], dims, options["weight"], options["bias"], options["eps"])


def group_norm(
    lowering: Lowering,
    name: str,
    x: Shared,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> Shared:
    """Over all but the batch of each of `groups` groups of channels."""
    grouped = (x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    output = _standardised(lowering, name, x, grouped, eps)
    if weight is None and bias is None:
        return output
    shape = [-1, *[1] * (len(x.shape) - 2)]
    weight = torch.ones(x.shape[1]) if weight is None else weight
    offset = None if bias is None else bias.detach().view(shape)
    return scale(lowering, name, output, weight.detach().view(shape), offset)


def _group_norm_layer(lowering: Lowering, call: Call) -> Shared:
    layer = call.layer
    return group_norm(lowering, call.name, call.first, layer.num_groups, layer.weight, layer.bias, layer.eps)


def _group_norm_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "input num_groups weight bias eps cudnn_enabled", weight=None, bias=None, eps=1e-5, cudnn_enabled=True
    )
    return group_norm(
        lowering,
        call.name,
        options["input"],
        int(options["num_groups"]),
        options["weight"],
        options["bias"],
        options["eps"],
    )


def _prelu_layer(lowering: Lowering, call: Call) -> Shared:
    return _prelu(lowering, call, call.layer.weight)


def _prelu_function(lowering: Lowering, call: Call) -> Shared:
    return _prelu(lowering, call, call.options(f"{'input' if callable(call.target) else 'self'} weight")["weight"])


def _prelu(lowering: Lowering, call: Call, weight: torch.Tensor) -> Shared:
    """relu(x) + weight * (x - relu(x))."""
    x, name = call.first, call.name
    positive = lowering.emit("relu", name, (x,), x.shape)
    opposite = lowering.affine(name, positive, -1.0)
    negative = lowering.emit("add", name, (x, opposite), x.shape)
    shape = [-1, *[1] * (len(x.shape) - 2)]
    scaled = scale(lowering, name, negative, weight.detach().view(shape))
    return lowering.emit("add", name, (positive, scaled), x.shape)


_MODULES: dict[type[nn.Module], Lower] = {
    nn.Linear: _linear_layer,
    nn.Conv1d: _conv_layer,
    nn.Conv2d: _conv_layer,
    nn.BatchNorm1d: _batch_norm_layer,
    nn.BatchNorm2d: _batch_norm_layer,
    nn.LayerNorm: _layer_norm_layer,
    nn.GroupNorm: _group_norm_layer,
    nn.PReLU: _prelu_layer,
}
_FUNCTIONS: dict[Any, Lower] = {
    F.linear: _linear_function,
    F.conv1d: _conv_function,
    F.conv2d: _conv_function,
    F.batch_norm: _batch_norm_function,
    F.layer_norm: _layer_norm_function,
    torch.layer_norm: _layer_norm_function,
    F.group_norm: _group_norm_function,
    torch.group_norm: _group_norm_function,
    torch.prelu: _prelu_function,
}
LOWERINGS.register("layers")(Tables(_MODULES, _FUNCTIONS, {"prelu": _prelu_function}))
