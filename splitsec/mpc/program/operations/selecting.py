"""Operations that choose by comparison: ReLU and its relatives, maxima, the label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from splitsec.mpc.program.operations.base import OPERATIONS, Operation, Running, gives_precision, scaled
from splitsec.mpc.program.program import Step, Weights
from splitsec.mpc.protocols.maximum import largest
from splitsec.mpc.protocols.relu import relu
from splitsec.mpc.protocols.sign import at_least_zero


def _relu(running: Running) -> torch.Tensor:
    x = running.first
    # One bit above the bound, for rounding and for what the truncation's low bits may carry.
    high = running.step.bits + x.scale + 1
    return relu(running.context, x.share, shift=x.scale - running.context.precision, high=high)


def _leaky_relu(running: Running) -> torch.Tensor:
    """slope * x + (1 - slope) * relu(x) with a product's scale."""
    precision = running.context.precision
    positive = _relu(running)
    # At this scale the slope's digits beyond the working precision and the input's are both kept.
    slope: int = round(running.step.slope * 2**precision)
    rest = scaled(running.first, precision, running.context).share
    share: torch.Tensor = rest * slope + positive * (2**precision - slope)
    return share


def _hardtanh(running: Running) -> torch.Tensor:
    """low + relu(x - low) - relu(x - high), both at once."""
    step, x, context = running.step, running.first, running.context
    ends = torch.tensor([step.low, step.high], dtype=torch.float64)
    moved = torch.round(ends * 2.0**x.scale).to(torch.int64).view(2, *[1] * x.share.dim())
    both = x.share[None] - moved if running.serves else x.share[None].expand(2, *x.share.shape)
    above = relu(context, both, shift=x.scale - context.precision, high=step.bits + x.scale + 1)
    share: torch.Tensor = above[0] - above[1]
    return share + round(step.low * 2**context.precision) if running.serves else share


def _max_pool(running: Running) -> torch.Tensor:
    """Return the maximum of each window."""
    step, x, context = running.step, running.first, running.context
    top, left = step.padding
    rows, columns = step.shape[-2:]
    # How far the last window reaches beyond the input, with `ceil_mode` further than the padding.
    reach = [
        (count - 1) * step.stride[i] + step.dilation[i] * (step.kernel[i] - 1) + 1 - step.padding[i]
        for i, count in enumerate((rows, columns))
    ]
    bottom, right = (max(0, due - have) for due, have in zip(reach, x.share.shape[-2:], strict=True))
    # Padding must lose every comparison, and stay within the bound of differences.
    lowest = -(1 << (step.bits + x.scale)) if running.serves else 0
    share = F.pad(x.share, (left, right, top, bottom), value=lowest)
    candidates = torch.stack(
        [
            share[
                :,
                :,
                i * step.dilation[0] : i * step.dilation[0] + (rows - 1) * step.stride[0] + 1 : step.stride[0],
                j * step.dilation[1] : j * step.dilation[1] + (columns - 1) * step.stride[1] + 1 : step.stride[1],
            ]
            for i in range(step.kernel[0])
            for j in range(step.kernel[1])
        ]
    ).view(math.prod(step.kernel), -1)
    shift, high = x.scale - context.precision, step.bits + x.scale + 2
    return largest(context, candidates, zero=step.zero, shift=shift, high=high).view(step.shape)


def _plain_max_pool(step: Step, inputs: Sequence[torch.Tensor], _weights: Weights | None) -> torch.Tensor:
    output = F.max_pool2d(inputs[0], step.kernel, step.stride, step.padding, step.dilation, step.ceil)
    return output.clamp(min=0) if step.zero else output


def _winners(running: Running) -> torch.Tensor:
    """Shares of 1 where a class has the largest value of its sample, else 0: int64 (samples, classes)."""
    share, high = running.first.share, running.step.bits + running.first.scale + 2
    most = largest(running.context, share.t().contiguous(), zero=False, high=high)
    return at_least_zero(running.context, share - most[:, None], high=high)


def _at_least_zero(running: Running) -> torch.Tensor:
    """Shares of 1 where a value is at least zero, else 0."""
    x, context = running.first, running.context
    # With fractional bits, since other steps expect those that they may cut off.
    return at_least_zero(context, x.share, high=running.step.bits + x.scale + 1) << context.precision


def _with_ends(step: Step, bounds: Sequence[float]) -> float:
    # Its two ReLUs see the input moved by the ends.
    return max(bounds) + max(abs(step.low), abs(step.high))


OPERATIONS.register_all(
    {
        "relu": Operation(
            run=_relu, plain=lambda _step, x, _weights: x[0].relu(), gives=gives_precision, compares=True
        ),
        "leaky_relu": Operation(
            run=_leaky_relu,
            plain=lambda step, x, _weights: F.leaky_relu(x[0], step.slope),
            gives=lambda _step, _scales, precision: 2 * precision,
            compares=True,
        ),
        "hardtanh": Operation(
            run=_hardtanh,
            plain=lambda step, x, _weights: x[0].clamp(step.low, step.high),
            gives=gives_precision,
            bound=lambda step, bounds, _size: (
                min(max(bounds), max(abs(step.low), abs(step.high)))
                if step.low <= 0 <= step.high
                else max(abs(step.low), abs(step.high))
            ),
            inside=_with_ends,
            compares=True,
        ),
        "max_pool2d": Operation(run=_max_pool, plain=_plain_max_pool, gives=gives_precision, compares=True),
        "at_least_zero": Operation(
            run=_at_least_zero,
            plain=lambda _step, x, _weights: (x[0] >= 0).double(),
            gives=gives_precision,
            bound=lambda _step, _bounds, _size: 1.0,
            compares=True,
        ),
        "argmax": Operation(
            run=_winners,
            plain=lambda _step, x, _weights: (x[0] >= x[0].max(1, keepdim=True).values).double(),
            gives=lambda _step, _scales, _precision: 0,
            bound=lambda _step, _bounds, _size: 1.0,
            compares=True,
        ),
    }
)
