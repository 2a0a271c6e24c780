"""Lowering sums and products: of two values on shares, with numbers, and with constants of the server's."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.program.lowering.layers import scale


def _operands(call: Call, *, reverse: bool = False) -> tuple[Any, Any]:
    options = call.options(f"{'input' if callable(call.target) else 'self'} other alpha", alpha=1)
    left, right = call.args[0] if call.args else options.get("input"), options.get("other")
    if right is None or options["alpha"] != 1:
        raise UnsupportedLayerError(
            f"'{call.name}' takes options, such as alpha, which have no encrypted form; write a + alpha * b"
        )
    return (right, left) if reverse else (left, right)


def _number(value: Any) -> float | None:
    """Return a plain number, which is the architecture's and public. A tensor may be a parameter, and is not."""
    return float(value) if isinstance(value, (int, float)) else None


def negative(lowering: Lowering, name: str, x: Shared) -> Shared:
    """-x."""
    return lowering.affine(name, x, -1.0)


def add(lowering: Lowering, name: str, left: Any, right: Any, shape: Sequence[int]) -> Shared:
    """left + right, one of them or both on shares."""
    if not isinstance(left, Shared):
        left, right = right, left
    number = _number(right)
    if number is not None:
        return lowering.affine(name, left, 1.0, number)
    if isinstance(right, torch.Tensor):
        left = lowering.expand(name, left, shape)
        return lowering.emit_weights("shift", name, left, shape, torch.ones(1), right)
    return lowering.emit("add", name, (left, right), shape)


def _add(lowering: Lowering, call: Call) -> Shared:
    left, right = _operands(call)
    return add(lowering, call.name, left, right, lowering.shape_of(call))


def _sub(*, reverse: bool = False) -> Lower:
    def lower(lowering: Lowering, call: Call) -> Shared:
        left, right = _operands(call, reverse=reverse)
        number = _number(right)
        if isinstance(right, Shared):
            right = negative(lowering, call.name, right)
        else:
            right = -right.double() if number is None else -number
        return add(lowering, call.name, left, right, lowering.shape_of(call))

    return lower


def multiply(lowering: Lowering, name: str, left: Any, right: Any, shape: Sequence[int]) -> Shared:
    """left * right, one of them or both on shares."""
    if not isinstance(left, Shared):
        left, right = right, left
    number = _number(right)
    if number is not None:
        return lowering.affine(name, left, number)
    if isinstance(right, torch.Tensor):
        left = lowering.expand(name, left, shape)
        return scale(lowering, name, left, right.detach().double())
    return lowering.emit("mul", name, (left, right), shape)


def _mul(lowering: Lowering, call: Call) -> Shared:
    left, right = _operands(call)
    return multiply(lowering, call.name, left, right, lowering.shape_of(call))


def _neg(lowering: Lowering, call: Call) -> Shared:
    return negative(lowering, call.name, call.first)


def _square(lowering: Lowering, call: Call) -> Shared:
    return multiply(lowering, call.name, call.first, call.first, lowering.shape_of(call))


def matmul(lowering: Lowering, name: str, left: Shared, right: Shared, shape: Sequence[int]) -> Shared:
    """Return the product of two matrices, or of as many as their leading dimensions say."""
    return lowering.emit("matmul", name, (left, right), shape, kernel=(left.shape[-1],))


def _matmul(lowering: Lowering, call: Call) -> Shared:
    left, right = call.first, call.args[1] if len(call.args) > 1 else call.kwargs.get("other", call.kwargs.get("mat2"))
    shape = lowering.shape_of(call)
    if isinstance(left, Shared) and isinstance(right, Shared):
        return matmul(lowering, call.name, left, right, shape)
    if isinstance(left, Shared) and right.dim() == 2:
        zeros = torch.zeros(right.shape[1])
        return lowering.emit_weights("linear", call.name, left, shape, right.detach().t(), zeros)
    if isinstance(right, Shared) and left.dim() == 2:
        # W x = (x' W')'.
        turned = lowering.transpose(call.name, right)
        product = lowering.emit_weights(
            "linear", call.name, turned, (*turned.shape[:-1], left.shape[0]), left.detach(), torch.zeros(left.shape[0])
        )
        return lowering.transpose(call.name, product)
    raise UnsupportedLayerError(f"'{call.name}' multiplies by a constant of more than two dimensions; use two")


def _reduced(call: Call) -> tuple[tuple[int, ...], int]:
    """Which dimensions a sum or mean takes, and how many elements that is."""
    options = call.options(f"{'input' if callable(call.target) else 'self'} dim keepdim dtype", dim=None)
    x, dim = call.first, options["dim"]
    dims = range(len(x.shape)) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    axes = tuple(sorted(int(dim) % len(x.shape) for dim in dims))
    return axes, math.prod(x.shape[axis] for axis in axes)


def _sum(lowering: Lowering, call: Call) -> Shared:
    dims, count = _reduced(call)
    return lowering.emit("sum", call.name, (call.first,), lowering.shape_of(call), index=dims, kernel=(count,))


def _mean(lowering: Lowering, call: Call) -> Shared:
    total = _sum(lowering, call)
    _, count = _reduced(call)
    return lowering.affine(call.name, total, 1 / count)


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.sub: _sub(),
    operator.isub: _sub(),
    torch.sub: _sub(),
    torch.rsub: _sub(reverse=True),
    operator.mul: _mul,
    operator.imul: _mul,
    torch.mul: _mul,
    operator.neg: _neg,
    torch.neg: _neg,
    torch.square: _square,
    operator.matmul: _matmul,
    torch.matmul: _matmul,
    torch.bmm: _matmul,
    torch.sum: _sum,
    torch.mean: _mean,
}
_METHODS: dict[str, Lower] = {
    "add": _add,
    "add_": _add,
    "sub": _sub(),
    "sub_": _sub(),
    "mul": _mul,
    "mul_": _mul,
    "neg": _neg,
    "square": _square,
    "matmul": _matmul,
    "bmm": _matmul,
    "sum": _sum,
    "mean": _mean,
}
LOWERINGS.register("arithmetic")(Tables({}, _FUNCTIONS, _METHODS))
