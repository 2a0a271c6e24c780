"""How large every value of a program can get: guaranteed by the weights, or measured on a calibration batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from splitsec.errors import RangeError
from splitsec.mpc.program import Check, Step, Weights, value_scales
from splitsec.mpc.ring import HEADROOM_BITS

# What a calibration batch's largest value may be exceeded by.
MARGIN = 16.0


def largest_value(precision: int) -> float:
    """The magnitude that no value of a program may reach."""
    # Differences of two values are compared too, and rounding takes a unit: two bits below the headroom.
    return float(2 ** (HEADROOM_BITS - 2 * precision - 2))


def _room(step: Step, scale: int, precision: int) -> float:
    # What a value takes beyond a product's scale, and a window's sum before it is divided.
    return float(max(2.0 ** (scale - 2 * precision), math.prod(step.kernel) if step.op == "avg_pool2d" else 1))


def guaranteed_bounds(
    steps: list[Step], weights: Mapping[int, Weights], precision: int, wanted: float
) -> tuple[list[float], float, str]:
    """A bound for every value, the largest power of two up to `wanted` that no input may reach, and what sets it.

    If the input's magnitude is below b, that of value k is below gain[k] * b + offset[k]. The bound is a guarantee,
    not a measurement. Rounding it down to a power of two keeps what it tells the client about the weights to a few
    bits.
    """
    most, scales = largest_value(precision), value_scales(steps, precision)
    lines: list[tuple[float, float]] = [(1.0, 0.0)]
    limit, limited_by = min(most, wanted), ""
    for number, step in enumerate(steps, 1):
        join = max if step.op == "cat" else sum
        gain = join(lines[index][0] for index in step.inputs)
        offset = join(lines[index][1] for index in step.inputs)
        if number in weights:
            held = weights[number]
            rounded = torch.round(held.weight * 2.0**precision) / 2.0**precision
            if held.weight.abs().max() and rounded.abs().max() < 2.0 ** (4 - precision):
                raise RangeError(
                    f"the weights of layer '{step.name}' are too small for {precision} fractional bits; scale them up"
                )
            norm = _norm(rounded)
            gain, offset = norm * gain, norm * offset + held.bias.abs().max().item()
        elif step.op == "hardtanh":
            # Its two ReLUs see the input moved by the ends.
            offset += max(abs(step.low), abs(step.high))
        elif step.op in ("sigmoid", "tanh", "softmax"):
            gain, offset = 0.0, 1.0
        # Rounding of weights and activations to fixed point adds a little to each.
        offset += 2.0**-8
        lines.append((gain, offset))
        room = _room(step, scales[number], precision)
        if gain and (most / room - offset) / gain < limit:
            limit, limited_by = (most / room - offset) / gain, step.name
        elif offset >= most / room:
            limit, limited_by = 0.0, step.name
    if limit < 2.0**-precision:
        raise RangeError(
            f"layer '{limited_by}' can overflow the fixed-point range whatever the input; scale its weights down, or "
            "give a calibration batch"
        )
    limit = 2.0 ** math.floor(math.log2(limit))
    return [gain * limit + offset for gain, offset in lines], limit, limited_by


def _norm(weight: torch.Tensor) -> float:
    """How many times larger than its inputs a layer's output can get, bias aside."""
    return weight.abs().flatten(1).sum(1).max().item()


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
        if step.op not in ("linear", "conv2d", "add", "avg_pool2d") and number < len(steps):
            continue
        reach = sum(bounds[index] for index in step.inputs)
        if number in weights:
            reach = reach * _norm(weights[number].weight) * 1.01 + weights[number].bias.abs().max().item()
        bits = _bits(bounds[number])
        if not max(reach, 2.0**bits) * _room(step, scales[number], precision) < 2.0 ** (
            HEADROOM_BITS - 1 - 2 * precision
        ):
            raise RangeError(f"layer '{step.name}' could overflow so far that no check would notice; scale it down")
        found.append(Check(number, bits))
    return tuple(found)


def measured_bounds(
    steps: list[Step], weights: Mapping[int, Weights], calibration: torch.Tensor, precision: int
) -> list[float]:
    """`MARGIN` times the largest magnitude of every value when the calibration activations run in plain."""
    values = evaluate(steps, weights, calibration)
    bounds = [MARGIN * max(value.abs().max().item(), 2.0**-4) for value in values]
    scales = value_scales(steps, precision)
    for step, bound, scale in zip([None, *steps], bounds, scales, strict=True):
        room = 1.0 if step is None else _room(step, scale, precision)
        if not bound * room < largest_value(precision):
            name = "the input" if step is None else f"layer '{step.name}'"
            raise RangeError(f"{name} reaches {bound / MARGIN:g} in calibration: too much")
    return bounds


def evaluate(steps: Sequence[Step], weights: Mapping[int, Weights], x: torch.Tensor) -> list[torch.Tensor]:
    """The program in plain float64: every value, the input first. Any batch size will do."""
    values = [x.detach().double()]
    for number, step in enumerate(steps, 1):
        one = values[step.inputs[0]]
        held = weights.get(number)
        match step.op:
            case "linear" if held is not None:
                made = F.linear(one, held.weight, held.bias)
            case "conv2d" if held is not None:
                made = F.conv2d(one, held.weight, held.bias, step.stride, step.padding, step.dilation, step.groups)
            case "max_pool2d":
                made = F.max_pool2d(one, step.kernel, step.stride, step.padding)
                made = made.clamp(min=0) if step.zero else made
            case "avg_pool2d":
                made = F.avg_pool2d(one, step.kernel, step.stride, step.padding)
            case "add":
                made = one + values[step.inputs[1]]
            case "cat":
                made = torch.cat([values[index] for index in step.inputs], step.dim)
            case "reshape":
                made = one.reshape(len(one), *step.shape[1:])
            case "leaky_relu":
                made = F.leaky_relu(one, step.slope)
            case "hardtanh":
                made = one.clamp(step.low, step.high)
            case "softmax":
                made = one.softmax(step.dim)
            case op:
                made = getattr(torch, op)(one)
        values.append(made)
    return values


def input_bits(step: Step, bounds: list[float]) -> int:
    """The smallest k such that 2**k bounds what the step's own arithmetic makes of its inputs."""
    largest = max(bounds[index] for index in step.inputs) + max(abs(step.low), abs(step.high))
    return _bits(largest)


def _bits(bound: float) -> int:
    return max(0, math.ceil(math.log2(bound)))
