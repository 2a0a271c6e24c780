"""Functions of one value and of rows of values: broken lines, softmax, layer norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from splitsec.mpc.program.operations.base import (
    FREE_BITS,
    OPERATIONS,
    Operation,
    Running,
    Size,
    gives_precision,
    gives_product,
    takes_precision,
)
from splitsec.mpc.program.program import Step, Weights
from splitsec.mpc.protocols.broken_lines import bend
from splitsec.mpc.protocols.normalise import FINE_BITS, exponentials, row_bits, softmax, standardise
from splitsec.mpc.protocols.truncate import truncate
from splitsec.mpc.ring import HEADROOM_BITS, PRECISION_BITS


def _curve(running: Running) -> torch.Tensor:
    step, precision = running.step, running.context.precision
    (curve,) = step.curves
    high = step.bits + precision + 1
    return bend(running.context, running.first.share, curve, scale=precision, digits=precision, high=high)


def _curve_bound(step: Step, bounds: Sequence[float], _size: Size | None) -> float:
    (curve,) = step.curves
    if step.high and bounds[0] > step.high:
        # Beyond its domain the line is not the function.
        return math.inf
    ends = [-bounds[0], bounds[0]]
    values: list[float] = [*curve(torch.tensor(ends, dtype=torch.float64)).tolist(), *curve.heights]
    return max(map(abs, values))


def _curve_inside(step: Step, bounds: Sequence[float]) -> float:
    return max(bounds) + max(abs(knot) for knot in step.curves[0].knots)


def _rows(running: Running) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the input with the step's dimension first and the others as one, and what undoes that."""
    share = running.first.share.movedim(running.step.dim, 0)
    shape = share.shape

    def back(value: torch.Tensor) -> torch.Tensor:
        return value.view(shape).movedim(0, running.step.dim)

    return share.reshape(shape[0], -1), back


def _high(running: Running) -> int:
    return running.step.bits + running.first.scale + 1


def _softmax(running: Running) -> torch.Tensor:
    rows, back = _rows(running)
    return back(softmax(running.context, rows, running.step.curves[0], high=_high(running)))


def _log_softmax(running: Running) -> torch.Tensor:
    rows, back = _rows(running)
    context, precision = running.context, running.context.precision
    exponential, logarithm = running.step.curves
    below, _, total = exponentials(context, rows, exponential, high=_high(running))
    size = len(rows).bit_length()
    # Slopes of one in the number of values need that many digits more, as far as there is room.
    digits = min(precision + size, HEADROOM_BITS - 4 - precision - size)
    log = bend(context, total, logarithm, scale=precision, digits=digits, high=precision + size + 2)
    return back(below - truncate(context, log, digits))


def _standardise(running: Running) -> torch.Tensor:
    step, x = running.step, running.first
    return standardise(running.context, x.share, scale=x.scale, eps=step.low, bits=step.bits)


def _standardise_takes(step: Step, scale: int, precision: int) -> int:
    # What a value has beyond the working precision is kept where there is room: small rows need it.
    return min(scale, row_bits(step.shape[-1], step.bits, precision, precision + FREE_BITS))


def _plain_standardise(step: Step, inputs: Sequence[torch.Tensor], _weights: Weights | None) -> torch.Tensor:
    return torch.layer_norm(inputs[0], inputs[0].shape[-1:], eps=step.low)


def _standardise_bound(step: Step, bounds: Sequence[float], _size: Size | None) -> float:
    size = step.shape[-1]
    return math.sqrt(size) if bounds[0] <= largest_of_a_row(size) else math.inf


def largest_of_a_row(size: int) -> float:
    """Return the power of two up to which values of a row may reach, so that their sum of squares fits the ring."""
    bits = math.ceil((HEADROOM_BITS - 1 - 2 * PRECISION_BITS - math.log2(size)) / 2) - 1
    return 2.0**bits


OPERATIONS.register_all(
    {
        "curve": Operation(
            run=_curve,
            plain=lambda step, x, _weights: step.curves[0](x[0]),
            takes=takes_precision,
            gives=gives_product,
            bound=_curve_bound,
            inside=_curve_inside,
            grows=True,
            compares=True,
        ),
        "softmax": Operation(
            run=_softmax,
            plain=lambda step, x, _weights: x[0].softmax(step.dim),
            takes=takes_precision,
            gives=lambda _step, scales, _precision: scales[0] + FINE_BITS,
            bound=lambda _step, _bounds, _size: 1.01,
            compares=True,
        ),
        "log_softmax": Operation(
            run=_log_softmax,
            plain=lambda step, x, _weights: x[0].log_softmax(step.dim),
            takes=takes_precision,
            gives=gives_precision,
            bound=lambda step, bounds, _size: 2 * bounds[0] + math.log(step.shape[step.dim]) + 1,
            grows=True,
            compares=True,
        ),
        # Layer norm without its weights; `low` is its epsilon.
        "standardise": Operation(
            run=_standardise,
            plain=_plain_standardise,
            takes=_standardise_takes,
            gives=gives_precision,
            bound=_standardise_bound,
            grows=True,
            compares=True,
        ),
    }
)
