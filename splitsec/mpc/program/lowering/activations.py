"""Lowering activation functions: comparisons where they are pieces of lines, broken lines where they bend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.bounds import largest_value
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.protocols.broken_lines import curve_of, domain_of, logarithm


def options_of(call: Call, names: str, **defaults: Any) -> dict[str, Any]:
    """Return the options of a layer, or those given to a function whose arguments are the input and `names`."""
    if call.layer is not None:
        return {name: getattr(call.layer, name, defaults.get(name)) for name in names.split()}
    first = "self" if isinstance(call.target, str) else "input"
    return call.options(f"{first} {names}", **defaults)


def relu(lowering: Lowering, name: str, x: Shared) -> Shared:
    """max(x, 0)."""
    return lowering.emit("relu", name, (x,), x.shape)


def _relu(lowering: Lowering, call: Call) -> Shared:
    return relu(lowering, call.name, call.first)


def _leaky_relu(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "negative_slope inplace", negative_slope=0.01)
    x, slope = call.first, float(options["negative_slope"])
    if not -1 <= slope <= 1:
        raise UnsupportedLayerError(f"layer '{call.name}' has slope {slope}; give it one between -1 and 1")
    return lowering.emit("leaky_relu", call.name, (x,), x.shape, slope=slope)


def clip(lowering: Lowering, name: str, x: Shared, low: float, high: float) -> Shared:
    """Between two ends; where the lower one is above the other, it is the other everywhere, as in torch."""
    return lowering.emit("hardtanh", name, (x,), x.shape, low=float(min(low, high)), high=float(high))


def _hardtanh(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "min_val max_val inplace", min_val=-1.0, max_val=1.0)
    return clip(lowering, call.name, call.first, options["min_val"], options["max_val"])


def _relu6(lowering: Lowering, call: Call) -> Shared:
    return clip(lowering, call.name, call.first, 0.0, 6.0)


def _clamp(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "min max", min=None, max=None)
    return _clamped(lowering, call, options["min"], options["max"])


def _clamp_min(lowering: Lowering, call: Call) -> Shared:
    return _clamped(lowering, call, options_of(call, "min")["min"], None)


def _clamp_max(lowering: Lowering, call: Call) -> Shared:
    return _clamped(lowering, call, None, options_of(call, "max")["max"])


def _clamped(lowering: Lowering, call: Call, low: Any, high: Any) -> Shared:
    x = call.first
    for end in (low, high):
        if end is not None and not isinstance(end, (int, float)):
            raise UnsupportedLayerError(f"'{call.name}' clips at a {type(end).__name__}; clip at numbers")
        if end is not None and math.isnan(end):
            raise UnsupportedLayerError(f"'{call.name}' clips at nan, which leaves nothing; clip at numbers")
    if (low == math.inf) or (high == -math.inf):
        raise UnsupportedLayerError(f"'{call.name}' clips to infinity alone; clip at numbers")
    # An end that no value can reach is none.
    most = largest_value(lowering.precision)
    bounded = low is not None and low > -most, high is not None and high < most
    if not any(bounded) and (low is not None or high is not None):
        same: Shared = x
        return same
    low, high = (end if there else None for end, there in zip((low, high), bounded, strict=True))
    if low is not None and high is not None:
        return clip(lowering, call.name, x, low, high)
    if low is None and high is None:
        raise UnsupportedLayerError(f"'{call.name}' clips at neither end; give it min or max")
    # One end: low + relu(x - low), or high - relu(high - x).
    end, sign = (float(low), 1.0) if high is None else (float(high), -1.0)
    moved = lowering.affine(call.name, x, sign, -sign * end)
    return lowering.affine(call.name, relu(lowering, call.name, moved), sign, end)


def hard_sigmoid(lowering: Lowering, name: str, x: Shared) -> Shared:
    """x/6 + 1/2 between 0 and 1."""
    inside = lowering.affine(name, x, 1 / 6, 0.5)
    return clip(lowering, name, inside, 0.0, 1.0)


def _hard_sigmoid(lowering: Lowering, call: Call) -> Shared:
    return hard_sigmoid(lowering, call.name, call.first)


def _hard_swish(lowering: Lowering, call: Call) -> Shared:
    x = call.first
    return lowering.emit("mul", call.name, (x, hard_sigmoid(lowering, call.name, x)), x.shape)


def bend(lowering: Lowering, name: str, x: Shared, function: str, parameter: float = 1.0) -> Shared:
    """Return a function as a broken line."""
    curve = curve_of(function, float(parameter))
    low, high = domain_of(function)
    return lowering.emit("curve", name, (x,), x.shape, curves=(curve,), low=low, high=high)


def _bent(function: str) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        options_of(call, "inplace")
        return bend(lowering, call.name, call.first, function)

    return lower


def _gelu(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "approximate", approximate="none")
    return bend(lowering, call.name, call.first, "gelu" if options["approximate"] == "none" else "gelu_tanh")


def _elu(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "alpha inplace", alpha=1.0)
    x = call.first
    return bend(lowering, call.name, x, "elu", options["alpha"])


def _selu(lowering: Lowering, call: Call) -> Shared:
    # torch.nn.SELU's two numbers.
    alpha, factor = 1.6732632423543772, 1.0507009873554805
    return lowering.affine(call.name, bend(lowering, call.name, call.first, "elu", alpha), factor)


def _celu(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "alpha inplace", alpha=1.0)
    alpha = float(options["alpha"])
    inner = lowering.affine(call.name, call.first, 1 / alpha)
    return lowering.affine(call.name, bend(lowering, call.name, inner, "elu"), alpha)


def _log_sigmoid(lowering: Lowering, call: Call) -> Shared:
    """-softplus(-x)."""
    opposite = lowering.affine(call.name, call.first, -1.0)
    return lowering.affine(call.name, bend(lowering, call.name, opposite, "softplus"), -1.0)


def _glu(lowering: Lowering, call: Call) -> Shared:
    """Return the first half of a dimension times the sigmoid of the second."""
    options = options_of(call, "dim", dim=-1)
    x, dim = call.first, int(options["dim"]) % len(call.first.shape)
    size = x.shape[dim] // 2
    first, second = (lowering.narrow(call.name, x, dim, start, size) for start in (0, size))
    return lowering.emit("mul", call.name, (first, bend(lowering, call.name, second, "sigmoid")), first.shape)


def _softplus(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "beta threshold", beta=1.0, threshold=20.0)
    if not options["beta"] > 0:
        raise UnsupportedLayerError(f"layer '{call.name}' has a beta of {options['beta']}; give it one above 0")
    if options["threshold"] < 9:
        raise UnsupportedLayerError(
            f"layer '{call.name}' is a line from {options['threshold']} on; use the default, 20"
        )
    return bend(lowering, call.name, call.first, "softplus", options["beta"])


def softmax(lowering: Lowering, name: str, x: Shared, dim: int) -> Shared:
    """Along one dimension."""
    return lowering.emit("softmax", name, (x,), x.shape, dim=dim, curves=(curve_of("exp"),))


def _softmax(lowering: Lowering, call: Call) -> Shared:
    return softmax(lowering, call.name, call.first, _dim(call))


def _log_softmax(lowering: Lowering, call: Call) -> Shared:
    x, dim = call.first, _dim(call)
    curves = (curve_of("exp"), logarithm(x.shape[dim] + 1))
    return lowering.emit("log_softmax", call.name, (x,), x.shape, dim=dim, curves=curves)


def _dim(call: Call) -> int:
    if call.layer is not None:
        dim = call.layer.dim
    else:
        options = call.options(f"{'input' if callable(call.target) else 'self'} dim _stacklevel dtype", dim=None)
        dim = options["dim"]
    if dim is None:
        raise UnsupportedLayerError(f"'{call.name}' does not say along which dimension; give it dim=-1")
    return int(dim) % len(call.first.shape)


_MODULES: dict[type[nn.Module], Lower] = {
    nn.ReLU: _relu,
    nn.ReLU6: _relu6,
    nn.LeakyReLU: _leaky_relu,
    nn.Hardtanh: _hardtanh,
    nn.Hardsigmoid: _hard_sigmoid,
    nn.Hardswish: _hard_swish,
    nn.Sigmoid: _bent("sigmoid"),
    nn.Tanh: _bent("tanh"),
    nn.GELU: _gelu,
    nn.SiLU: _bent("silu"),
    nn.Mish: _bent("mish"),
    nn.ELU: _elu,
    nn.SELU: _selu,
    nn.CELU: _celu,
    nn.LogSigmoid: _log_sigmoid,
    nn.GLU: _glu,
    nn.Softplus: _softplus,
    nn.Softmax: _softmax,
    nn.LogSoftmax: _log_softmax,
}
_FUNCTIONS: dict[Callable[..., Any], Lower] = {
    F.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    F.relu6: _relu6,
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    torch.clamp: _clamp,
    torch.clip: _clamp,
    torch.clamp_min: _clamp_min,
    torch.clamp_max: _clamp_max,
    F.hardsigmoid: _hard_sigmoid,
    F.hardswish: _hard_swish,
    torch.sigmoid: _bent("sigmoid"),
    F.sigmoid: _bent("sigmoid"),
    torch.tanh: _bent("tanh"),
    torch.sigmoid_: _bent("sigmoid"),
    torch.tanh_: _bent("tanh"),
    F.tanh: _bent("tanh"),
    F.gelu: _gelu,
    F.silu: _bent("silu"),
    F.mish: _bent("mish"),
    F.elu: _elu,
    F.selu: _selu,
    torch.selu: _selu,
    F.celu: _celu,
    torch.celu: _celu,
    F.logsigmoid: _log_sigmoid,
    F.glu: _glu,
    F.softplus: _softplus,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    F.log_softmax: _log_softmax,
    torch.log_softmax: _log_softmax,
}
_METHODS: dict[str, Lower] = {
    "relu": _relu,
    "relu_": _relu,
    "clamp": _clamp,
    "clamp_": _clamp,
    "sigmoid_": _bent("sigmoid"),
    "tanh_": _bent("tanh"),
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "sigmoid": _bent("sigmoid"),
    "tanh": _bent("tanh"),
    "softmax": _softmax,
    "log_softmax": _log_softmax,
}
LOWERINGS.register("activations")(Tables(_MODULES, _FUNCTIONS, _METHODS))
