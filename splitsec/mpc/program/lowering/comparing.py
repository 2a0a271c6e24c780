"""Lowering comparisons, whose truth values stay on shares as 0 or 1, and choices by masks, public or on shares.

A comparison of real numbers on shares is that of their fixed-point values: two that differ by less than their last bit
are equal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.activations import bend, clip, options_of
from splitsec.mpc.program.lowering.arithmetic import add, multiply, negative
from splitsec.mpc.program.lowering.base import LOWERINGS, MASKED, Call, Lower, Lowering, Shared, Tables


def inverse(lowering: Lowering, name: str, truth: Shared) -> Shared:
    """1 - truth."""
    return lowering.affine(name, truth, -1.0, 1.0)


def _pair(call: Call) -> tuple[Any, Any]:
    """Return both operands, however they were named."""
    options = call.options(f"{_input(call)} other")
    return options[_input(call)], options["other"]


def _compared(sign: float, *, inverted: bool) -> Lower:
    """Return whether sign * (left - right) is at least zero, or the inverse of that."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        left, right = _pair(call)
        name, shape = call.name, lowering.shape_of(call, truth=True)
        # A comparison of right with left is that of left with right, turned.
        turn = sign if isinstance(left, Shared) else -sign
        left, right = (left, right) if isinstance(left, Shared) else (right, left)
        opposite = negative(lowering, name, right) if isinstance(right, Shared) else -_real(right)
        difference = lowering.affine(name, add(lowering, name, left, opposite, shape), turn)
        truth = lowering.emit("at_least_zero", name, (difference,), shape)
        return inverse(lowering, name, truth) if inverted else truth

    return lower


def _equal(*, inverted: bool) -> Lower:
    """Return whether a truth value is 1 or 0, as `mask == 0` asks."""

    def lower(lowering: Lowering, call: Call) -> Shared:
        left, right = _pair(call)
        left, right = (left, right) if isinstance(left, Shared) else (right, left)
        if not lowering.is_truth(left) or not isinstance(right, (bool, int, float)) or right not in (0, 1):
            raise UnsupportedLayerError(
                f"'{call.name}' asks whether real numbers on shares are equal, which rounding decides; compare with > "
                "or <, or put the comparison in the front"
            )
        same = left if right == 1 else inverse(lowering, call.name, left)
        return inverse(lowering, call.name, same) if inverted else same

    return lower


def _not(lowering: Lowering, call: Call) -> Shared:
    return inverse(lowering, call.name, _truth(lowering, call, call.first))


def _and(lowering: Lowering, call: Call) -> Shared:
    left, right = _truths(lowering, call)
    return multiply(lowering, call.name, left, right, lowering.shape_of(call, truth=True))


def _or(lowering: Lowering, call: Call) -> Shared:
    """left + right - left * right."""
    left, right = _truths(lowering, call)
    shape, name = lowering.shape_of(call, truth=True), call.name
    both = multiply(lowering, name, left, right, shape)
    return add(lowering, name, add(lowering, name, left, right, shape), negative(lowering, name, both), shape)


def _truths(lowering: Lowering, call: Call) -> tuple[Any, Any]:
    left, right = _pair(call)
    return _truth(lowering, call, left), _truth(lowering, call, right)


def _truth(lowering: Lowering, call: Call, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return value.double()
    if not lowering.is_truth(value):
        raise UnsupportedLayerError(f"'{call.name}' takes what is no truth value; compare first, as in x > 0")
    return value


def _real(value: Any) -> Any:
    return value.detach().double() if isinstance(value, torch.Tensor) else float(value)


def _input(call: Call) -> str:
    return "input" if callable(call.target) and not _is_aten(call) else "self"


def _is_aten(call: Call) -> bool:
    return hasattr(call.target, "_schema")


def _masked_fill(lowering: Lowering, call: Call) -> Shared:
    """Replace a mask's elements by a number."""
    options = call.options(f"{_input(call)} mask value")
    x, mask, value = call.first, options["mask"], options["value"]
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, (Shared, torch.Tensor)):
        raise UnsupportedLayerError(f"'{call.name}' fills with what is no number; use torch.where")
    return choose(lowering, call, mask, float(value), x)


def _where(lowering: Lowering, call: Call) -> Shared:
    """Return one value or number where a mask is true, another elsewhere."""
    options = call.options(f"{'self' if isinstance(call.target, str) else 'condition'} input other")
    if isinstance(call.target, str):
        options = {"condition": options["input"], "input": options["self"], "other": options["other"]}
    return choose(lowering, call, options["condition"], options["input"], options["other"])


def choose(lowering: Lowering, call: Call, mask: Any, yes: Any, no: Any) -> Shared:
    """Return `yes` where the mask is true, else `no`: each a value on shares, a number or a constant."""
    if isinstance(mask, Shared):
        return _chosen_on_shares(lowering, call, mask, yes, no)
    if isinstance(yes, Shared) and isinstance(no, Shared):
        first, second = _chosen(lowering, call, ~mask, 0.0, yes), _chosen(lowering, call, mask, 0.0, no)
        return lowering.emit("add", call.name, (first, second), lowering.shape_of(call))
    return _chosen(lowering, call, mask, yes, no) if isinstance(no, Shared) else _chosen(lowering, call, ~mask, no, yes)


def _chosen_on_shares(lowering: Lowering, call: Call, mask: Shared, yes: Any, no: Any) -> Shared:
    """no + mask * (yes - no)."""
    _truth(lowering, call, mask)
    name, shape = call.name, lowering.shape_of(call)
    low = [_masks_out(value) for value in (yes, no)]
    if low[0] or low[1]:
        # A mask of attention: so far down that what was there does not matter.
        kept = no if low[0] else yes
        down = mask if low[0] else inverse(lowering, name, mask)
        return add(lowering, name, kept, lowering.affine(name, down, MASKED), shape)
    yes, no = (value if isinstance(value, Shared) else _real(value) for value in (yes, no))
    if not isinstance(yes, Shared) and not isinstance(no, Shared):
        between: Any = yes - no
    else:
        below = negative(lowering, name, no) if isinstance(no, Shared) else -no
        between = add(lowering, name, yes, below, shape)
    return add(lowering, name, multiply(lowering, name, mask, between, shape), no, shape)


def _masks_out(value: Any) -> bool:
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        value = value.item()
    return isinstance(value, (int, float)) and value <= MASKED


def _chosen(lowering: Lowering, call: Call, mask: torch.Tensor, value: Any, x: Shared) -> Shared:
    """`value`, a number or constant, where the mask is true, else x."""
    shape, mask = lowering.shape_of(call), mask.double()
    x = lowering.expand(call.name, x, shape)
    number = torch.as_tensor(value).detach().double().clamp(min=MASKED)
    if number.dim() == 0 and number.item() <= MASKED:
        # A mask of attention: so far down that what was there does not matter.
        return lowering.emit_weights("shift", call.name, x, shape, torch.ones(1), mask * MASKED)
    factor, offset = torch.broadcast_tensors(1 - mask, mask * number)
    return lowering.emit_weights("scale", call.name, x, shape, factor.contiguous(), offset.contiguous())


def _sign(lowering: Lowering, call: Call) -> Shared:
    """[x >= 0] - [-x >= 0]: 0 where both are."""
    x, name = call.first, call.name
    above = lowering.emit("at_least_zero", name, (x,), x.shape)
    below = lowering.emit("at_least_zero", name, (negative(lowering, name, x),), x.shape)
    return add(lowering, name, above, negative(lowering, name, below), x.shape)


def _kept_above(lowering: Lowering, name: str, x: Shared, least: float, otherwise: float) -> Shared:
    """x where it is larger than `least`, else a number."""
    below = lowering.emit("at_least_zero", name, (lowering.affine(name, x, -1.0, least),), x.shape)
    above = inverse(lowering, name, below)
    kept = multiply(lowering, name, above, lowering.affine(name, x, 1.0, -otherwise), x.shape)
    return lowering.affine(name, kept, 1.0, otherwise)


def _threshold(lowering: Lowering, call: Call) -> Shared:
    options = options_of(call, "threshold value inplace")
    return _kept_above(lowering, call.name, call.first, float(options["threshold"]), float(options["value"]))


def _hard_shrink(lowering: Lowering, call: Call) -> Shared:
    """Keep what is larger than `lambd` or smaller than its negative."""
    end, name, x = float(options_of(call, "lambd", lambd=0.5)["lambd"]), call.name, call.first
    opposite = _kept_above(lowering, name, negative(lowering, name, x), end, 0.0)
    kept = _kept_above(lowering, name, x, end, 0.0)
    return add(lowering, name, kept, negative(lowering, name, opposite), x.shape)


def _soft_shrink(lowering: Lowering, call: Call) -> Shared:
    """x less what of it is between the two ends."""
    end = float(options_of(call, "lambd", lambd=0.5)["lambd"])
    inside = clip(lowering, call.name, call.first, -end, end)
    return add(lowering, call.name, call.first, negative(lowering, call.name, inside), call.first.shape)


def _tanh_shrink(lowering: Lowering, call: Call) -> Shared:
    """x - tanh(x)."""
    bent = bend(lowering, call.name, call.first, "tanh")
    return add(lowering, call.name, call.first, negative(lowering, call.name, bent), call.first.shape)


_BY_NAME: dict[str, Lower] = {
    "ge": _compared(1.0, inverted=False),
    "le": _compared(-1.0, inverted=False),
    "lt": _compared(1.0, inverted=True),
    "gt": _compared(-1.0, inverted=True),
    "eq": _equal(inverted=False),
    "ne": _equal(inverted=True),
    "logical_not": _not,
    "bitwise_not": _not,
    "logical_and": _and,
    "bitwise_and": _and,
    "logical_or": _or,
    "bitwise_or": _or,
    "sign": _sign,
    "masked_fill": _masked_fill,
    "where": _where,
}
_FUNCTIONS: dict[Callable[..., Any], Lower] = {
    **{getattr(torch, name): lower for name, lower in _BY_NAME.items()},
    **{getattr(operator, name): _BY_NAME[name] for name in ("ge", "le", "lt", "gt", "eq", "ne")},
    F.threshold: _threshold,
    F.hardshrink: _hard_shrink,
    F.softshrink: _soft_shrink,
    F.tanhshrink: _tanh_shrink,
    operator.invert: _not,
    operator.and_: _and,
    operator.or_: _or,
}
_METHODS: dict[str, Lower] = {**_BY_NAME, "masked_fill_": _masked_fill}
_OPERATIONS: dict[str, Lower] = {
    # The others are lowered as torch's functions are.
    **{name: lower for name, lower in _BY_NAME.items() if name not in ("masked_fill", "where")},
    "__and__": _and,
    "__or__": _or,
    "threshold": _threshold,
    "hardshrink": _hard_shrink,
    "softshrink": _soft_shrink,
}
_MODULES: dict[type[nn.Module], Lower] = {
    nn.Threshold: _threshold,
    nn.Hardshrink: _hard_shrink,
    nn.Softshrink: _soft_shrink,
    nn.Tanhshrink: _tanh_shrink,
}
LOWERINGS.register("comparing")(Tables(_MODULES, _FUNCTIONS, _METHODS, {}, _OPERATIONS))
