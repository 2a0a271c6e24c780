"""Lowering functions of real numbers: exponentials, logarithms, roots, reciprocals, quotients, lengths, waves.

Exponentials are a broken line to a power; logarithms, sines and cosines are broken lines; roots, reciprocals and
lengths are made of one inverse root.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.activations import bend, relu
from splitsec.mpc.program.lowering.arithmetic import add, multiply, negative
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.program.lowering.extremes import magnitude

# The smallest number of which a root is taken: the last of the working precision's digits.
LEAST = 2.0**-16
# Of the square of what is divided by, so that a divisor keeps its digits down to 2**-8.
LEAST_SQUARE = 2.0**-18


def exponential(lowering: Lowering, name: str, x: Shared) -> Shared:
    """Return exp(x) for x up to 10: exp(x / 8), squared three times."""
    power = bend(lowering, name, x, "exp_eighth")
    for _ in range(3):
        power = lowering.emit("mul", name, (power, power), x.shape)
    return power


def inverse_root(lowering: Lowering, name: str, x: Shared, *, least: float = LEAST) -> Shared:
    """Return 1 / sqrt(x) for x from `least` on."""
    return lowering.emit("inverse_root", name, (x,), x.shape, low=least)


def root(lowering: Lowering, name: str, x: Shared) -> Shared:
    """Return sqrt(x): x / sqrt(x), which is 0 for 0."""
    return lowering.emit("mul", name, (x, inverse_root(lowering, name, x)), x.shape)


def reciprocal(lowering: Lowering, name: str, x: Shared) -> Shared:
    """Return 1 / x: the inverse root of its square, with its sign."""
    square = lowering.emit("mul", name, (x, x), x.shape)
    size = inverse_root(lowering, name, square, least=LEAST_SQUARE)
    above = lowering.emit("at_least_zero", name, (x,), x.shape)
    return lowering.emit("mul", name, (size, lowering.affine(name, above, 2.0, -1.0)), x.shape)


def _exp(lowering: Lowering, call: Call) -> Shared:
    return exponential(lowering, call.name, call.first)


def _expm1(lowering: Lowering, call: Call) -> Shared:
    return lowering.affine(call.name, exponential(lowering, call.name, call.first), 1.0, -1.0)


def _erf(lowering: Lowering, call: Call) -> Shared:
    return bend(lowering, call.name, call.first, "erf")


def _sqrt(lowering: Lowering, call: Call) -> Shared:
    return root(lowering, call.name, call.first)


def _rsqrt(lowering: Lowering, call: Call) -> Shared:
    return inverse_root(lowering, call.name, call.first)


def _reciprocal(lowering: Lowering, call: Call) -> Shared:
    return reciprocal(lowering, call.name, call.first)


def _div(lowering: Lowering, call: Call) -> Shared:
    options = call.options(f"{_first(call)} other rounding_mode", rounding_mode=None)
    left, right = options[_first(call)], options["other"]
    if options["rounding_mode"] is not None:
        raise UnsupportedLayerError(f"'{call.name}' rounds its quotient, which has no encrypted form")
    if isinstance(right, Shared):
        inverse: Any = reciprocal(lowering, call.name, right)
    else:
        inverse = 1 / right if isinstance(right, (int, float)) else right.double().reciprocal()
    return multiply(lowering, call.name, left, inverse, lowering.shape_of(call))


def _log(factor: float = 1.0, before: float = 0.0) -> Lower:
    """Return factor * log(x + before)."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        x, name = call.first, call.name
        x = lowering.affine(name, x, 1.0, before) if before else x
        output = bend(lowering, name, x, "log")
        return output if factor == 1.0 else lowering.affine(name, output, factor)

    return lower


def _wave(function: str) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        return bend(lowering, call.name, call.first, function)

    return lower


def _first(call: Call) -> str:
    return "self" if isinstance(call.target, str) or hasattr(call.target, "_schema") else "input"


def _sums(lowering: Lowering, name: str, x: Shared, dims: Sequence[int]) -> Shared:
    """Return the sums over dimensions, which are kept."""
    shape = [1 if at in dims else size for at, size in enumerate(x.shape)]
    count = math.prod(x.shape[dim] for dim in dims)
    return lowering.emit("sum", name, (x,), shape, index=tuple(dims), kernel=(count,))


def _dims(call: Call, x: Shared, dim: Any) -> tuple[int, ...]:
    dims = range(len(x.shape)) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    axes = tuple(sorted(int(axis) % len(x.shape) for axis in dims))
    if 0 in axes:
        raise UnsupportedLayerError(f"'{call.name}' joins the samples of a batch; name the other dimensions")
    return axes


def length(lowering: Lowering, call: Call, x: Shared, order: Any, dims: Sequence[int]) -> Shared:
    """Return the norm of order 1 or 2 over dimensions, which are kept."""
    if order not in (1, 2, None):
        raise UnsupportedLayerError(f"'{call.name}' is a norm of order {order}; orders 1 and 2 have encrypted forms")
    if order == 1:
        return _sums(lowering, call.name, magnitude(lowering, call.name, x), dims)
    return root(lowering, call.name, _sums(lowering, call.name, _square(lowering, call.name, x), dims))


def _square(lowering: Lowering, name: str, x: Shared) -> Shared:
    return lowering.emit("mul", name, (x, x), x.shape)


def _norm(names: str, *, matrices: bool = False) -> Lower:
    """Return the norm of vectors.

    Args:
        matrices: over two dimensions torch's function is a norm of matrices, which is another.
    """

    def lower(lowering: Lowering, call: Call) -> Shared:
        options = call.options(f"{_first(call)} {names}", dim=None, keepdim=False, dtype=None, p=2, ord=2)
        x = call.first
        order = options["ord"] if "ord" in names else options["p"]
        if matrices and not isinstance(options["dim"], int):
            raise UnsupportedLayerError(
                f"'{call.name}' may be a norm of matrices; use torch.linalg.vector_norm, or name one dimension"
            )
        norm = length(lowering, call, x, 2 if order == "fro" else order, _dims(call, x, options["dim"]))
        return lowering.reshape(call.name, norm, lowering.shape_of(call))

    return lower


def _normalize(lowering: Lowering, call: Call) -> Shared:
    """x / max(norm, eps): by the inverse root of the sum of squares."""
    options = call.options("input p dim eps out", p=2.0, dim=1, eps=1e-12, out=None)
    x, dims, eps = call.first, _dims(call, call.first, options["dim"]), float(options["eps"])
    if eps > LEAST_SQUARE**0.5 and options["p"] != 2:
        raise UnsupportedLayerError(f"'{call.name}' has an eps of {eps:g}, which has an encrypted form for p=2 alone")
    if options["p"] == 2:
        squares = _sums(lowering, call.name, _square(lowering, call.name, x), dims)
        if eps > LEAST_SQUARE**0.5:
            # The larger of both: what is above eps squared, and that.
            above = relu(lowering, call.name, lowering.affine(call.name, squares, 1.0, -(eps**2)))
            squares = lowering.affine(call.name, above, 1.0, eps**2)
        inverse = inverse_root(lowering, call.name, squares, least=LEAST_SQUARE)
    else:
        inverse = reciprocal(lowering, call.name, length(lowering, call, x, options["p"], dims))
    return multiply(lowering, call.name, x, lowering.expand(call.name, inverse, x.shape), x.shape)


def _spread(*, rooted: bool) -> Lower:
    """Return the variance over dimensions, or the standard deviation."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        names = f"{_first(call)} dim unbiased keepdim correction"
        options = call.options(names, dim=None, unbiased=True, keepdim=False, correction=None)
        if isinstance(options["dim"], bool):
            # `x.std(False)` says whether it is unbiased, over all dimensions.
            options = {**options, "unbiased": options["dim"], "dim": None}
        x, name = call.first, call.name
        dims = _dims(call, x, options["dim"])
        count = math.prod(x.shape[dim] for dim in dims)
        correction = options["correction"] if options["correction"] is not None else int(bool(options["unbiased"]))
        mean = lowering.affine(name, _sums(lowering, name, x, dims), 1 / count)
        centred = add(lowering, name, x, negative(lowering, name, lowering.expand(name, mean, x.shape)), x.shape)
        squares = _sums(lowering, name, _square(lowering, name, centred), dims)
        variance = lowering.affine(name, squares, 1 / (count - correction))
        result = root(lowering, name, variance) if rooted else variance
        return lowering.reshape(name, result, lowering.shape_of(call))

    return lower


def _pow(lowering: Lowering, call: Call) -> Any:
    """Raise to a power that is public: whole, or a half."""
    x, power = call.first, call.options(f"{_first(call)} exponent")["exponent"]
    if not isinstance(power, (int, float)) or not isinstance(x, Shared) or abs(power) > 8 or (2 * power) % 1:
        what = power if isinstance(power, (int, float)) else "a value that is no plain number"
        raise UnsupportedLayerError(
            f"'{call.name}' raises to {what}; whole powers and halves up to 8 have encrypted forms"
        )
    name, size = call.name, abs(power)
    result: Shared | None = None
    for _ in range(int(size)):
        result = x if result is None else lowering.emit("mul", name, (result, x), x.shape)
    if size % 1:
        half = root(lowering, name, x) if power > 0 else inverse_root(lowering, name, x)
        whole = result if result is None or power > 0 else reciprocal(lowering, name, result)
        return half if whole is None else lowering.emit("mul", name, (half, whole), x.shape)
    if result is None:
        return lowering.affine(name, x, 0.0, 1.0)
    return result if power > 0 else reciprocal(lowering, name, result)


_BY_NAME: dict[str, Lower] = {
    "exp": _exp,
    "expm1": _expm1,
    "erf": _erf,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "reciprocal": _reciprocal,
    "div": _div,
    "pow": _pow,
    "log": _log(),
    "log1p": _log(before=1.0),
    "log2": _log(1 / math.log(2)),
    "log10": _log(1 / math.log(10)),
    "sin": _wave("sin"),
    "cos": _wave("cos"),
    "var": _spread(rooted=False),
    "std": _spread(rooted=True),
    "norm": _norm("p dim keepdim dtype"),
}
_FUNCTIONS: dict[Callable[..., Any], Lower] = {
    **{getattr(torch, name): lower for name, lower in _BY_NAME.items()},
    operator.truediv: _div,
    operator.itruediv: _div,
    operator.pow: _pow,
    torch.linalg.vector_norm: _norm("ord dim keepdim"),
    torch.linalg.norm: _norm("ord dim keepdim", matrices=True),
    F.normalize: _normalize,
}
_METHODS: dict[str, Lower] = {**_BY_NAME, "div_": _div, "exp_": _exp, "sqrt_": _sqrt, "rsqrt_": _rsqrt}
_OPERATIONS: dict[str, Lower] = {**_BY_NAME, "linalg_vector_norm": _norm("ord dim keepdim")}
LOWERINGS.register("functions")(Tables({}, _FUNCTIONS, _METHODS, {}, _OPERATIONS))
