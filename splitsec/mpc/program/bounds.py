"""How large every value of a program can get: guaranteed by the weights, or measured on a calibration batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import torch

from splitsec.errors import RangeError
from splitsec.mpc.program.operations import OPERATIONS, Size, value_scales
from splitsec.mpc.program.operations.functions import largest_of_a_row
from splitsec.mpc.program.program import Check, Shape, Step, Weights
from splitsec.mpc.ring import HEADROOM_BITS, check_range, real_limit

# What a calibration batch's largest value may be exceeded by.
MARGIN = 16.0
# Values that stay below this in calibration get the bound of those that reach it, so that raising them costs nothing.
SMALL_VALUE = 2.0**-4
# Comparisons take bits and one more, for the sign, in steps: within a step all cost the same, so bounds are
# rounded up to the last of it.
WIDTH_STEP = 4
# Steps that divide what the ring holds between the size of values and their digits: each bit too many costs a digit.
_DIVIDES, _FINE_STEP = ("standardise",), 2
# Rounding of weights and activations to fixed point adds a little to every value.
_ROUNDING = 2.0**-8


def largest_value(precision: int) -> float:
    """Return the magnitude that no value of a program may reach."""
    # Differences of two values are compared too, and rounding takes a unit: two bits below the headroom.
    return float(2 ** (HEADROOM_BITS - 2 * precision - 2))


def _room(step: Step, scale: int, precision: int) -> float:
    # What a value takes beyond a product's scale, and what is larger than the result on the way to it.
    return float(max(2.0 ** (scale - 2 * precision), OPERATIONS.get(step.op).room(step)))


def guaranteed_bounds(
    steps: Sequence[Step],
    sizes: Mapping[int, Size],
    precision: int,
    wanted: float,
    *,
    least: float | None = None,
) -> tuple[list[float], float, str]:
    """Return a bound for every value.

    The largest power of two up to `wanted` that no input may reach, and what sets it.

    If the input's magnitude is below that power, each value's is below its bound: a guarantee, not a measurement. A
    power of two keeps what it tells the client about the weights to a few bits.

    Raises:
        RangeError: a layer that overflows whatever the input, or for inputs below `least`.
    """
    scales = value_scales(steps, precision)
    limit, limited_by = min(largest_value(precision), 2.0 ** math.floor(math.log2(wanted))), ""
    while True:
        bounds, overflows = _bounds(steps, sizes, scales, precision, limit)
        if not overflows:
            return bounds, limit, limited_by
        limit, limited_by = limit / 2, overflows
        if limit < (2.0**-precision if least is None else least):
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
        operation = OPERATIONS.get(step.op)
        before = [bounds[index] for index in step.inputs]
        largest = operation.bound(step, before, sizes.get(number)) + _ROUNDING
        if not largest * _room(step, scales[number], precision) <= most or not operation.inside(step, before) <= most:
            return bounds, step.name
        bounds.append(largest)
    return bounds, ""


class Memory:
    """What was found out about weights and values of one network: its tails need not be measured one by one.

    Only for tails of one model and of one calibration sample.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[object, ...], Size] = {}
        self._largest: dict[tuple[object, ...], float] = {}

    def size_of(self, step: Step, layer: Weights, precision: int) -> Size:
        """`size_of`, once for the same weights."""
        few = layer.weight.flatten()[:256].sum().item(), layer.bias.flatten()[:256].sum().item()
        key = (step.name, step.op, tuple(layer.weight.shape), precision, *few)
        if key not in self._sizes:
            self._sizes[key] = size_of(step, layer, precision)
        return self._sizes[key]

    def largest(self, steps: Sequence[Step], weights: Mapping[int, Weights], sample: torch.Tensor) -> list[float]:
        """Magnitudes of the values of `steps` for an input of the program's shape, that of the input first.

        What another tail has found out about the same steps is not computed again.
        """
        keys = self._keys(steps)
        unknown = [number for number, key in enumerate(keys, 1) if key not in self._largest]
        last = max(unknown, default=0)
        values = evaluate(steps[:last], weights, sample)
        for key, value in zip(keys, values[1:], strict=False):
            self._largest.setdefault(key, _magnitude(value))
        return [_magnitude(values[0]), *(self._largest[key] for key in keys)]

    @staticmethod
    def _keys(steps: Sequence[Step]) -> list[tuple[object, ...]]:
        # Tails of one model end alike: equal steps are counted from the end.
        seen: dict[tuple[object, ...], int] = {}
        keys: list[tuple[object, ...]] = []
        for step in reversed(steps):
            key = (step.name, step.op, step.shape)
            seen[key] = seen.get(key, 0) + 1
            keys.append((*key, seen[key]))
        return keys[::-1]


def _magnitude(value: torch.Tensor) -> float:
    return value.abs().max().item()


def size_of(step: Step, layer: Weights, precision: int) -> Size:
    """How much a layer's weights let its values grow.

    Raises:
        RangeError: weights that are not finite, or too large or too small for fixed point; names the layer.
    """
    check_range(layer.weight, limit=real_limit(precision), what=f"the weight of layer '{step.name}'")
    check_range(layer.bias, limit=largest_value(precision), what=f"the bias of layer '{step.name}'")
    precision += step.digits
    rounded = (layer.weight.double() * 2.0**precision).round_().mul_(2.0**-precision).abs_()
    largest = rounded.max().item()
    if largest < 2.0 ** (4 - precision) and layer.weight.abs().max():
        raise RangeError(
            f"the weights of layer '{step.name}' are too small for {precision} fractional bits; scale them up"
        )
    norm = rounded.flatten(1).sum(1).max().item() if step.op in ("linear", "conv2d") else largest
    return Size(norm, _magnitude(layer.bias))


def range_checks(
    steps: Sequence[Step], sizes: Mapping[int, Size], bounds: Sequence[float], precision: int, *, label: bool = False
) -> tuple[Check, ...]:
    """Return what the checked mode compares: the last value and all that may be larger than those they are made of.

    If all earlier values are within their bounds, no value can be so far beyond its own that it comes back into the
    range by wrapping around: then the first overflow is always found. A value that no comparison depends on is right
    as long as it is within the ring, however small it was in calibration, and is not called wrong before.

    Args:
        label: the last value's largest is taken, by comparisons.

    Raises:
        RangeError: a layer for which that is not so.
    """
    checks, scales = [], value_scales(steps, precision)
    compared = _compared(steps, label=label)
    allowed = list(bounds)
    for number, step in enumerate(steps, 1):
        operation = OPERATIONS.get(step.op)
        room = _room(step, scales[number], precision)
        reach = operation.bound(step, [allowed[index] for index in step.inputs], sizes.get(number)) * 1.01
        if number not in compared:
            allowed[number] = max(bounds[number], min(reach, largest_value(precision) / room))
        if not operation.grows and number < len(steps):
            continue
        bits = _bits(allowed[number])
        if not max(reach, 2.0**bits) * room < 2.0 ** (HEADROOM_BITS - 1 - 2 * precision):
            raise RangeError(f"layer '{step.name}' could overflow so far that no check would notice; scale it down")
        checks.append(Check(number, bits))
    return tuple(checks)


def _compared(steps: Sequence[Step], *, label: bool) -> set[int]:
    """Return the numbers of the values whose bounds a later comparison depends on."""
    numbers = {len(steps)} if label else set()
    for number in range(len(steps), 0, -1):
        step = steps[number - 1]
        if OPERATIONS.get(step.op).compares or number in numbers:
            numbers.update(step.inputs)
    return numbers


def batches(calibration: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
    """Return the calibration activations in batches of `rows`, the last one filled up with its own."""
    for start in range(0, len(calibration), rows):
        part = calibration[start : start + rows]
        yield torch.cat([part] * -(-rows // len(part)))[:rows]


def measured(
    steps: Sequence[Step],
    weights: Mapping[int, Weights],
    calibration: torch.Tensor,
    shape: Shape,
    memory: Memory | None = None,
) -> list[float]:
    """Return the largest magnitude of every value when the calibration activations run in plain, the input's first.

    Args:
        calibration: (N, ...): taken in batches of `shape`.
        memory: of other tails of the model; only for a calibration of one batch.
    """
    largest = [0.0] * (len(steps) + 1)
    for rows in batches(calibration, shape[0]):
        magnitudes = (memory or Memory()).largest(steps, weights, rows)
        largest = [max(pair) for pair in zip(largest, magnitudes, strict=True)]
    return largest


def measured_bounds(
    steps: Sequence[Step], weights: Mapping[int, Weights], largest: Sequence[float], precision: int
) -> list[float]:
    """`MARGIN` times the largest magnitudes of every value, those of `measured`, for bounds."""
    scales = value_scales(steps, precision)
    bounds = [MARGIN * max(magnitude, SMALL_VALUE) for magnitude in largest]
    most = largest_value(precision)
    if not bounds[0] < most:
        raise RangeError(f"the input reaches {largest[0]:g} in calibration: too much")
    for number, step in enumerate(steps, 1):
        if step.op == "curve" and step.high:
            # A line that is the function within its domain alone.
            (source,), width = step.inputs, max(-step.low, step.high)
            if largest[source] > width:
                raise RangeError(
                    f"layer '{step.name}' takes values up to {largest[source]:g} in calibration, and has an encrypted "
                    f"form up to {width:g}; scale them down, or keep it in the front"
                )
            bounds[source] = min(bounds[source], width)
            step = msgspec.structs.replace(step, high=0.0)  # noqa: PLW2901
        if step.op == "standardise":
            # A row's sum of squares fits the ring up to here, which is less than the usual margin.
            (source,), width = step.inputs, largest_of_a_row(step.shape[-1])
            if 2 * largest[source] <= width:
                bounds[source] = min(bounds[source], width)
        if number not in weights:
            # What cannot be larger need not be allowed for: probabilities, standardised rows.
            guaranteed = OPERATIONS.get(step.op).bound(step, [bounds[index] for index in step.inputs], None)
            bounds[number] = min(bounds[number], guaranteed + _ROUNDING) if guaranteed < math.inf else math.inf
        if not bounds[number] * _room(step, scales[number], precision) < most:
            raise RangeError(f"layer '{step.name}' reaches {largest[number]:g} in calibration: too much")
    return bounds


def evaluate(steps: Sequence[Step], weights: Mapping[int, Weights], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the program in plain float64: every value, the input of the program's shape first."""
    values = [x.detach().double()]
    for number, step in enumerate(steps, 1):
        inputs = [values[index] for index in step.inputs]
        values.append(OPERATIONS.get(step.op).plain(step, inputs, weights.get(number)))
    return values


def input_bits(step: Step, bounds: Sequence[float], precision: int) -> int:
    """Return a k such that 2**k bounds what the step's comparisons see of its inputs.

    The dealer and the client learn it, and it follows the size of weights: so it is one of few, one less than a
    multiple of `WIDTH_STEP`. Of layer and group norm it is an even number, since what docs/reference/models.md says of
    small rows would not hold with digits that are given away.
    """
    exact = _bits(OPERATIONS.get(step.op).inside(step, [bounds[index] for index in step.inputs]))
    if step.op in _DIVIDES:
        rounded = -(-exact // _FINE_STEP) * _FINE_STEP
    else:
        rounded = -(-(exact + 1) // WIDTH_STEP) * WIDTH_STEP - 1
    return max(exact, min(rounded, HEADROOM_BITS - 2 * precision - 2))


def _bits(bound: float) -> int:
    return max(0, math.ceil(math.log2(bound)))
