"""How large every value of a program can get: guaranteed by the weights, or measured on a calibration batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from splitsec.errors import RangeError
from splitsec.mpc.operations import OPERATIONS, Size, value_scales
from splitsec.mpc.program import Check, Shape, Step, Weights
from splitsec.mpc.ring import HEADROOM_BITS

# What a calibration batch's largest value may be exceeded by.
MARGIN = 16.0
# Rounding of weights and activations to fixed point adds a little to every value.
_ROUNDING = 2.0**-8


def largest_value(precision: int) -> float:
    """The magnitude that no value of a program may reach."""
    # Differences of two values are compared too, and rounding takes a unit: two bits below the headroom.
    return float(2 ** (HEADROOM_BITS - 2 * precision - 2))


def _room(step: Step, scale: int, precision: int) -> float:
    # What a value takes beyond a product's scale, and what is larger than the result on the way to it.
    return float(max(2.0 ** (scale - 2 * precision), OPERATIONS[step.op].room(step)))


def guaranteed_bounds(
    steps: Sequence[Step], weights: Mapping[int, Weights], precision: int, wanted: float
) -> tuple[list[float], float, str]:
    """A bound for every value, the largest power of two up to `wanted` that no input may reach, and what sets it.

    If the input's magnitude is below that power, each value's is below its bound: a guarantee, not a measurement. A
    power of two keeps what it tells the client about the weights to a few bits.

    Raises:
        RangeError: a layer that overflows whatever the input.
    """
    scales = value_scales(steps, precision)
    sizes = {number: size_of(steps[number - 1], held, precision) for number, held in weights.items()}
    limit, limited_by = min(largest_value(precision), 2.0 ** math.floor(math.log2(wanted))), ""
    while True:
        bounds, overflows = _bounds(steps, sizes, scales, precision, limit)
        if not overflows:
            return bounds, limit, limited_by
        limit, limited_by = limit / 2, overflows
        if limit < 2.0**-precision:
            raise RangeError(
                f"layer '{limited_by}' can overflow the fixed-point range whatever the input; scale its weights down, "
                "or give a calibration batch"
            )


def _bounds(
    steps: Sequence[Step], sizes: Mapping[int, Size], scales: Sequence[int], precision: int, limit: float
) -> tuple[list[float], str]:
    """Every value's bound for inputs up to `limit`, and the first layer that would overflow, if any."""
    most, bounds = largest_value(precision), [limit]
    for number, step in enumerate(steps, 1):
        operation = OPERATIONS[step.op]
        taken = [bounds[index] for index in step.inputs]
        made = operation.bound(step, taken, sizes.get(number)) + _ROUNDING
        if not made * _room(step, scales[number], precision) <= most or not operation.inside(step, taken) <= most:
            return bounds, step.name
        bounds.append(made)
    return bounds, ""


def size_of(step: Step, held: Weights, precision: int) -> Size:
    """How much a layer's weights let its values grow; raises `RangeError` for weights that fixed point cannot tell."""
    rounded = torch.round(held.weight * 2.0**precision) / 2.0**precision
    if held.weight.abs().max() and rounded.abs().max() < 2.0 ** (4 - precision):
        raise RangeError(
            f"the weights of layer '{step.name}' are too small for {precision} fractional bits; scale them up"
        )
    if step.op in ("linear", "conv2d"):
        norm = rounded.abs().flatten(1).sum(1).max().item()
    else:
        norm = rounded.abs().max().item()
    return Size(norm, held.bias.abs().max().item())


def range_checks(
    steps: Sequence[Step], weights: Mapping[int, Weights], bounds: Sequence[float], precision: int
) -> tuple[Check, ...]:
    """What the checked mode compares: the last value and all that may be larger than those they are made of.

    If all earlier values are within their bounds, no value can be so far beyond its own that it comes back into the
    range by wrapping around: then the first overflow is always found.

    Raises:
        RangeError: a layer for which that is not so.
    """
    found, scales = [], value_scales(steps, precision)
    for number, step in enumerate(steps, 1):
        operation = OPERATIONS[step.op]
        if not operation.grows and number < len(steps):
            continue
        size = size_of(step, weights[number], precision) if number in weights else None
        reach = operation.bound(step, [bounds[index] for index in step.inputs], size) * 1.01
        bits = _bits(bounds[number])
        room = _room(step, scales[number], precision)
        if not max(reach, 2.0**bits) * room < 2.0 ** (HEADROOM_BITS - 1 - 2 * precision):
            raise RangeError(f"layer '{step.name}' could overflow so far that no check would notice; scale it down")
        found.append(Check(number, bits))
    return tuple(found)


def measured_bounds(
    steps: Sequence[Step], weights: Mapping[int, Weights], calibration: torch.Tensor, precision: int, shape: Shape
) -> list[float]:
    """`MARGIN` times the largest magnitude of every value when the calibration activations run in plain.

    Args:
        calibration: (N, ...): taken in batches of `shape`, the last one filled up with its own rows.
    """
    largest = [0.0] * (len(steps) + 1)
    for start in range(0, len(calibration), shape[0]):
        rows = calibration[start : start + shape[0]]
        rows = torch.cat([rows] * -(-shape[0] // len(rows)))[: shape[0]]
        values = evaluate(steps, weights, rows)
        largest = [max(one, value.abs().max().item()) for one, value in zip(largest, values, strict=True)]
    scales = value_scales(steps, precision)
    bounds = [MARGIN * max(one, 2.0**-4) for one in largest]
    most = largest_value(precision)
    if not bounds[0] < most:
        raise RangeError(f"the input reaches {largest[0]:g} in calibration: too much")
    for number, step in enumerate(steps, 1):
        if number not in weights:
            # What cannot be larger need not be allowed for: probabilities, standardised rows.
            guaranteed = OPERATIONS[step.op].bound(step, [bounds[index] for index in step.inputs], None)
            bounds[number] = min(bounds[number], guaranteed + _ROUNDING) if guaranteed < math.inf else math.inf
        if not bounds[number] * _room(step, scales[number], precision) < most:
            raise RangeError(f"layer '{step.name}' reaches {largest[number]:g} in calibration: too much")
    return bounds


def evaluate(steps: Sequence[Step], weights: Mapping[int, Weights], x: torch.Tensor) -> list[torch.Tensor]:
    """The program in plain float64: every value, the input of the program's shape first."""
    values = [x.detach().double()]
    for number, step in enumerate(steps, 1):
        inputs = [values[index] for index in step.inputs]
        values.append(OPERATIONS[step.op].plain(step, inputs, weights.get(number)))
    return values


def input_bits(step: Step, bounds: Sequence[float]) -> int:
    """The smallest k such that 2**k bounds what the step's comparisons see of its inputs."""
    return _bits(OPERATIONS[step.op].inside(step, [bounds[index] for index in step.inputs]))


def _bits(bound: float) -> int:
    return max(0, math.ceil(math.log2(bound)))
