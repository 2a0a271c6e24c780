"""Sums, public factors, and products of two secret values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from splitsec.mpc.program.operations.base import (
    OPERATIONS,
    Operation,
    Running,
    Size,
    takes_precision,
    takes_product,
)
from splitsec.mpc.program.program import Step
from splitsec.mpc.protocols.multiply import multiply


def _add(running: Running) -> torch.Tensor:
    parts = [x.share << (running.scale - x.scale) for x in running.inputs]
    return sum(parts[1:], parts[0])


def _affine(running: Running) -> torch.Tensor:
    """factor * x + offset: both public."""
    step, x = running.step, running.first
    exponent = _exponent(step.factor)
    if exponent is None:
        share = x.share * round(step.factor * 2.0 ** (running.scale - x.scale))
    else:
        share = x.share << max(0, exponent)
        share = -share if step.factor < 0 else share
    return share + round(step.offset * 2.0**running.scale) if step.offset and running.serves else share


def _exponent(factor: float) -> int | None:
    """k where the factor is 2**k or -2**k: then the scale takes it up."""
    mantissa, exponent = math.frexp(abs(factor))
    return exponent - 1 if mantissa == 0.5 else None


def _affine_takes(step: Step, scale: int, precision: int) -> int:
    return takes_product(step, scale, precision) if _exponent(step.factor) is not None else precision


def _affine_gives(step: Step, scales: Sequence[int], precision: int) -> int:
    exponent = _exponent(step.factor)
    # A factor below one keeps its digits.
    return scales[0] + (precision + small_bits(step.factor) if exponent is None else max(0, -exponent))


def small_bits(factor: float) -> int:
    """How many more fractional bits a factor below one takes, so that it keeps the digits that one would have."""
    return min(24, max(0, -math.frexp(factor)[1])) if factor else 0


def _affine_bound(step: Step, bounds: Sequence[float], _size: Size | None) -> float:
    # The rounded factor may be a little larger.
    return abs(step.factor) * (1 + 2.0**-15) * bounds[0] + abs(step.offset)


def _mul(running: Running) -> torch.Tensor:
    left, right = running.inputs
    return multiply(running.context, left.share, right.share)


def _matmul(running: Running) -> torch.Tensor:
    left, right = running.inputs
    return multiply(running.context, left.share, right.share, op="matmul")


def _matmul_bound(step: Step, bounds: Sequence[float], _size: Size | None) -> float:
    return bounds[0] * bounds[1] * step.kernel[0]


def _sum(running: Running) -> torch.Tensor:
    return running.first.share.sum(running.step.index).view(running.step.shape)


OPERATIONS.register_all(
    {
        "add": Operation(
            run=_add,
            plain=lambda _step, x, _weights: sum(x[1:], x[0]),
            takes=takes_product,
            bound=lambda _step, bounds, _size: sum(bounds),
            inside=lambda _step, bounds: sum(bounds),
            grows=True,
        ),
        "affine": Operation(
            run=_affine,
            plain=lambda step, x, _weights: x[0] * step.factor + step.offset,
            takes=_affine_takes,
            gives=_affine_gives,
            bound=_affine_bound,
            grows=True,
        ),
        "mul": Operation(
            run=_mul,
            plain=lambda _step, x, _weights: x[0] * x[1],
            takes=takes_precision,
            gives=lambda _step, scales, _precision: sum(scales),
            bound=lambda _step, bounds, _size: bounds[0] * bounds[1],
            grows=True,
        ),
        # `kernel` is how many products each element of the result sums.
        "matmul": Operation(
            run=_matmul,
            plain=lambda _step, x, _weights: torch.matmul(x[0], x[1]),
            takes=takes_precision,
            gives=lambda _step, scales, _precision: sum(scales),
            bound=_matmul_bound,
            grows=True,
        ),
        "sum": Operation(
            run=_sum,
            plain=lambda step, x, _weights: x[0].sum(step.index).view(step.shape),
            takes=takes_product,
            bound=lambda step, bounds, _size: bounds[0] * step.kernel[0],
            grows=True,
        ),
    }
)
