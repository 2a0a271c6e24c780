"""Lowering layers with weights but convolutions: linear layers, norms, PReLU."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def rms_norm(lowering: Lowering, name: str, x: Shared, dims: int, weight: torch.Tensor | None, eps: float) -> Shared:
    """x / sqrt(mean(x^2) + eps) over the last `dims` dimensions.

    B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS 2019, section 4.

    Beside its opposites a value has the mean zero and the variance mean(x^2), so that the layer norm of both, of which
    the first half is taken, is the norm wanted.
    """
    kept = len(x.shape) - dims
    size = math.prod(x.shape[kept:])
    flat = lowering.reshape(name, x, (*x.shape[:kept], size))
    both = (*x.shape[:kept], 2 * size)
    pair = lowering.emit("cat", name, (flat, lowering.affine(name, flat, -1.0)), both, dim=kept)
    output = lowering.narrow(name, _standardised(lowering, name, pair, both, eps), kept, 0, size)
    output = lowering.reshape(name, output, x.shape)
    return output if weight is None else scale(lowering, name, output, weight.detach().double())


def _rms_norm_layer(lowering: Lowering, call: Call) -> Shared:
    layer = call.layer
    return rms_norm(lowering, call.name, call.first, len(layer.normalized_shape), layer.weight, _eps(call, layer.eps))


def _rms_norm_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options("input normalized_shape weight eps", weight=None, eps=None)
    dims = len(options["normalized_shape"])
    return rms_norm(lowering, call.name, options["input"], dims, options["weight"], _eps(call, options["eps"]))


def _eps(call: Call, eps: float | None) -> float:
    dtype = call.node.meta.get("dtype") or torch.float32
    return float(torch.finfo(dtype).eps if eps is None else eps)


def _instance_norm_layer(lowering: Lowering, call: Call) -> Shared:
    layer = call.layer
    values = (layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    return _instance_norm(lowering, call, call.first, values)


def _instance_norm_function(lowering: Lowering, call: Call) -> Shared:
    options = call.options(
        "input running_mean running_var weight bias use_input_stats momentum eps cudnn_enabled",
        running_mean=None,
        running_var=None,
        weight=None,
        bias=None,
        use_input_stats=True,
        momentum=0.1,
        eps=1e-5,
        cudnn_enabled=True,
    )
    mean, variance = (None if options["use_input_stats"] else options[key] for key in ("running_mean", "running_var"))
    values = (mean, variance, options["weight"], options["bias"], options["eps"])
    return _instance_norm(lowering, call, options["input"], values)


def _instance_norm_operation(lowering: Lowering, call: Call) -> Shared:
    options = call.schema_options()
    kept = (options["running_mean"], options["running_var"]) if not options["use_input_stats"] else (None, None)
    values = (*kept, options["weight"], options["bias"], options["eps"])
    return _instance_norm(lowering, call, options["input"], values)


def _instance_norm(lowering: Lowering, call: Call, x: Shared, values: tuple[Any, ...]) -> Shared:
    """Norm each channel of each sample by itself, or by running statistics where the layer keeps them."""
    mean, variance, weight, bias, eps = values
    if mean is not None:
        return _batch_norm(lowering, call, x, _folded(mean, variance, weight, bias, eps))
    return group_norm(lowering, call.name, x, x.shape[1], weight, bias, eps)


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
    nn.BatchNorm1d: _batch_norm_layer,
    nn.BatchNorm2d: _batch_norm_layer,
    nn.LayerNorm: _layer_norm_layer,
    nn.GroupNorm: _group_norm_layer,
    nn.BatchNorm3d: _batch_norm_layer,
    nn.InstanceNorm1d: _instance_norm_layer,
    nn.InstanceNorm2d: _instance_norm_layer,
    nn.InstanceNorm3d: _instance_norm_layer,
    nn.RMSNorm: _rms_norm_layer,
    nn.PReLU: _prelu_layer,
}
_FUNCTIONS: dict[Any, Lower] = {
    F.linear: _linear_function,
    F.batch_norm: _batch_norm_function,
    F.layer_norm: _layer_norm_function,
    torch.layer_norm: _layer_norm_function,
    F.group_norm: _group_norm_function,
    torch.group_norm: _group_norm_function,
    F.instance_norm: _instance_norm_function,
    F.rms_norm: _rms_norm_function,
    torch.rms_norm: _rms_norm_function,
    torch.prelu: _prelu_function,
}
LOWERINGS.register("layers")(
    Tables(
        _MODULES,
        _FUNCTIONS,
        {"prelu": _prelu_function},
        operations={"instance_norm": _instance_norm_operation, "rms_norm": _rms_norm_function},
    )
)
