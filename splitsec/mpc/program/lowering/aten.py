"""Lowering ATen operations, which exported graphs consist of (`splitsec.cut.exported`).

Most take their arguments in the order of a function of torch's, and are lowered as it is; their schema says the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.activations import bend
from splitsec.mpc.program.lowering.arithmetic import add
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.program.lowering.einsum import einsum
from splitsec.mpc.program.lowering.layers import linear

# By the name of an operation, the function whose lowering is the same for the same arguments.
_SAME_AS: Mapping[str, Any] = {
    **{
        name: getattr(torch, name)
        for name in (
            *("relu", "clamp", "clamp_min", "clamp_max", "sigmoid", "tanh", "add", "sub", "rsub", "mul", "div", "neg"),
            *("square", "pow", "matmul", "bmm", "sum", "mean", "abs", "maximum", "minimum", "max", "min", "amax"),
            *("amin", "cat", "stack", "chunk", "split", "unbind", "narrow", "select", "index_select", "flip", "t"),
            *("transpose", "permute", "flatten", "reshape", "squeeze", "unsqueeze", "where", "masked_fill"),
            *("prelu", "celu", "selu", "layer_norm", "group_norm"),
        )
    },
    **{
        name: getattr(F, name)
        for name in (
            *("linear", "leaky_relu", "hardtanh", "hardsigmoid", "hardswish", "gelu", "silu"),
            *("mish", "softplus", "glu", "relu6", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"),
            *("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d"),
            *("dropout", "pad", "pixel_shuffle", "scaled_dot_product_attention"),
        )
    },
    "mm": torch.bmm,
    "log_sigmoid": F.logsigmoid,
    "clip": torch.clamp,
    "split_with_sizes": torch.split,
    "feature_dropout": F.dropout2d,
    **dict.fromkeys(("view", "_unsafe_view", "unflatten"), torch.reshape),
}
_AS_METHODS = (
    "expand",
    "repeat",
    "contiguous",
    "clone",
    "detach",
    "to",
    "type_as",
    "view_as",
    "reshape_as",
    "expand_as",
)


def _as_function(name: str) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Any:
        return lowering.lower_as(_SAME_AS[name], replace(call, target=_SAME_AS[name]))

    return lower


def _as_method(name: str) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Any:
        return lowering.lower_as(name, replace(call, target=name))

    return lower


def _softmax(lowering: Lowering, call: Call) -> Any:
    function = torch.log_softmax if "log" in call.target.__name__ else torch.softmax
    options = call.schema_options()
    return lowering.lower_as(
        function, replace(call, target=function, args=(options["self"], options["dim"]), kwargs={})
    )


def _batch_norm(lowering: Lowering, call: Call) -> Any:
    options = call.schema_options()
    order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    return lowering.lower_as(
        F.batch_norm, replace(call, target=F.batch_norm, args=tuple(options[name] for name in order), kwargs={})
    )


def _elu(lowering: Lowering, call: Call) -> Shared:
    """scale * elu(input_scale * x), of which SELU and CELU are kinds."""
    options = call.schema_options()
    alpha, scale, inner = (float(options[name]) for name in ("alpha", "scale", "input_scale"))
    x = call.first if inner == 1.0 else lowering.affine(call.name, call.first, inner)
    output = bend(lowering, call.name, x, "elu", alpha)
    return output if scale == 1.0 else lowering.affine(call.name, output, scale)


def _slice(lowering: Lowering, call: Call) -> Any:
    options = call.schema_options()
    x, dim = options["self"], options["dim"] % len(options["self"].shape)
    part = slice(options["start"], options["end"], options["step"])
    index = (*[slice(None)] * dim, part)
    return lowering.lower_as(operator.getitem, replace(call, target=operator.getitem, args=(x, index), kwargs={}))


def _index(lowering: Lowering, call: Call) -> Any:
    options = call.schema_options()
    index = tuple(slice(None) if part is None else part for part in options["indices"])
    return lowering.lower_as(
        operator.getitem, replace(call, target=operator.getitem, args=(options["self"], index), kwargs={})
    )


def _same(_lowering: Lowering, call: Call) -> Any:
    return call.first


def _lookup(_lowering: Lowering, call: Call) -> Any:
    raise UnsupportedLayerError(f"'{call.name}' looks up by a value on shares; keep the embedding in the front")


def _constant_pad(lowering: Lowering, call: Call) -> Any:
    options = call.schema_options()
    args = (options["self"], options["pad"], "constant", options["value"])
    return lowering.lower_as(F.pad, replace(call, target=F.pad, args=args, kwargs={}))


def _size(_lowering: Lowering, call: Call) -> int:
    return int(call.first.shape[call.args[1]])


def _adaptive_max_pool(name: str) -> Lower:
    """Take the largest of each window; where it is nobody has."""

    def lower(lowering: Lowering, call: Call) -> tuple[Any, None]:
        size = [int(number) for number in call.args[1]]
        shape = (*call.first.shape[: -len(size)], *size)
        function = getattr(F, name)
        return lowering.lower_as(function, replace(call, target=function, shape=shape)), None

    return lower


def _addmm(lowering: Lowering, call: Call) -> Shared:
    """beta * bias + alpha * (left @ right)."""
    options = call.schema_options()
    if options["beta"] != 1 or options["alpha"] != 1:
        raise UnsupportedLayerError(f"'{call.name}' takes alpha or beta, which has no encrypted form; use @, * and +")
    bias, left, right = options["self"], *(value for name, value in options.items() if name.endswith(("1", "2")))
    if isinstance(bias, torch.Tensor) and isinstance(right, torch.Tensor) and bias.dim() == 1 and right.dim() == 2:
        return linear(lowering, call.name, left, right.detach().t(), bias.detach())
    product = lowering.lower_as(torch.matmul, replace(call, target=torch.matmul, args=(left, right), kwargs={}))
    return add(lowering, call.name, product, bias, lowering.shape_of(call))


def _einsum(lowering: Lowering, call: Call) -> Shared:
    return einsum(lowering, call, *call.args[:2])


_OPERATIONS: dict[str, Lower] = {
    **{name: _as_function(name) for name in _SAME_AS},
    **{name: _as_method(name) for name in _AS_METHODS},
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("alias", "lift_fresh_copy", "_to_copy"), _same),
    "batch_norm": _batch_norm,
    "elu": _elu,
    **{name: _adaptive_max_pool(name) for name in (f"adaptive_max_pool{dims}d" for dims in (1, 2, 3))},
    "sym_size": _size,
    "slice": _slice,
    "index": _index,
    "embedding": _lookup,
    "constant_pad_nd": _constant_pad,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "einsum": _einsum,
}
LOWERINGS.register("aten")(Tables({}, operations=_OPERATIONS))
