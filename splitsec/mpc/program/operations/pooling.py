"""Average pooling: local sums, whose divisors both parties know.

Where every window has the same number of elements and it is a power of two, the divisor is nothing but a shift of the
scale; else the sums are multiplied by the reciprocals of the counts, in fixed point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from splitsec.mpc.program.operations.base import OPERATIONS, Operation, Running, Size, takes_precision, takes_product
from splitsec.mpc.program.program import Shape, Step, Weights


def _avg_pool(running: Running) -> torch.Tensor:
    step, x = running.step, running.first
    sums = F.avg_pool2d(x.share, step.kernel, step.stride, step.padding, step.ceil, divisor_override=1)
    if _shift_alone(step):
        return sums
    counts = _counts(step, tuple(x.share.shape[-2:]))
    return sums * _reciprocals(counts, running.scale - x.scale)


def _counts(step: Step, size: Shape) -> torch.Tensor:
    """How many elements each window is divided by: float64 (rows, columns)."""
    if step.divisor:
        return torch.full(step.shape[-2:], float(step.divisor), dtype=torch.float64)
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    if step.padded:
        # What is padded counts, what `ceil_mode` reaches beyond it does not.
        height, width = step.padding
        ones = F.pad(ones, (width, width, height, height), value=1.0)
        counts = F.avg_pool2d(ones, step.kernel, step.stride, 0, step.ceil, divisor_override=1)
        return counts[0, 0, : step.shape[-2], : step.shape[-1]]
    return F.avg_pool2d(ones, step.kernel, step.stride, step.padding, step.ceil, divisor_override=1)[0, 0]


def _reciprocals(counts: torch.Tensor, bits: int) -> torch.Tensor:
    # Divisions of whole numbers by whole numbers are the same on every machine, which both parties rely on.
    return torch.round(2.0**bits / counts).to(torch.int64)


def _shift_alone(step: Step) -> bool:
    count = step.divisor or math.prod(step.kernel)
    whole = not step.ceil and (step.padded or not any(step.padding) or bool(step.divisor))
    return whole and count & (count - 1) == 0


def _count_bits(step: Step) -> int:
    return ((step.divisor or math.prod(step.kernel)) - 1).bit_length()


def _plain_avg_pool(step: Step, inputs: Sequence[torch.Tensor], _weights: Weights | None) -> torch.Tensor:
    return F.avg_pool2d(inputs[0], step.kernel, step.stride, step.padding, step.ceil, step.padded, step.divisor or None)


def _takes(step: Step, scale: int, precision: int) -> int:
    return takes_product(step, scale, precision) if _shift_alone(step) else precision


def _gives(step: Step, scales: Sequence[int], precision: int) -> int:
    return scales[0] + _count_bits(step) + (0 if _shift_alone(step) else precision)


def _bound(step: Step, bounds: Sequence[float], _size: Size | None) -> float:
    return bounds[0] * (max(1.0, math.prod(step.kernel) / step.divisor) if step.divisor else 1.0)


def _windows(length: int, count: int) -> torch.Tensor:
    """Of adaptive pooling: which elements each window holds, int64 (count, length) of zeros and ones."""
    columns = torch.zeros(count, length, dtype=torch.int64)
    for row in range(count):
        columns[row, row * length // count : -(-(row + 1) * length // count)] = 1
    return columns


def _adaptive(running: Running) -> torch.Tensor:
    share = running.first.share
    rows, columns = (
        _windows(length, count) for length, count in zip(share.shape[-2:], running.step.shape[-2:], strict=True)
    )
    sums = torch.matmul(torch.matmul(rows, share), columns.t())
    counts = rows.sum(1)[:, None] * columns.sum(1)[None]
    return sums * _reciprocals(counts.double(), running.scale - running.first.scale)


# `kernel` is the largest window here, which bounds the sums.
OPERATIONS.register_all(
    {
        "avg_pool2d": Operation(
            run=_avg_pool,
            plain=_plain_avg_pool,
            takes=_takes,
            gives=_gives,
            bound=_bound,
            room=lambda step: float(math.prod(step.kernel)),
            grows=True,
        ),
        "adaptive_avg_pool2d": Operation(
            run=_adaptive,
            plain=lambda step, inputs, _weights: F.adaptive_avg_pool2d(inputs[0], (step.shape[-2], step.shape[-1])),
            takes=takes_precision,
            gives=lambda step, scales, precision: scales[0] + precision + _count_bits(step),
            room=lambda step: float(math.prod(step.kernel)),
            grows=True,
        ),
    }
)
