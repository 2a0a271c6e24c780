"""Whether fixed point leaves a tail's result enough digits: said before it runs, by a run in plain.

The program is evaluated in float64 with every value and weight rounded as on shares, and compared with the tail itself
in torch, on a sample of activations. That sees the rounding that later layers amplify, which bounds by the norms of the
weights would overstate beyond use.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import msgspec
import torch
from torch import fx

from splitsec.errors import RangeError
from splitsec.mpc.prg import SEED_BYTES, Stream
from splitsec.mpc.program.bounds import evaluate
from splitsec.mpc.program.operations import OPERATIONS, value_scales
from splitsec.mpc.program.program import Program, Weights

# What a result may be off by: a part of the largest one, or what every value is.
TOLERANCE = 2.0**-6
_ROUNDING = 2.0**-16
# Activations below this part of the sample's are as good as zero.
_TINIEST = 20


def noise(shape: tuple[int, ...], limit: float) -> torch.Tensor:
    """Return normal numbers of unit size, or smaller if `limit` is small: float64, always the same."""
    first, second = (Stream(bytes(SEED_BYTES), index).ring(shape).double() for index in range(2))
    # Box and Muller's method, of uniform numbers above 0.
    radius = (-2 * torch.log((first + 2.0**63 + 1) / 2.0**64)).sqrt()
    return radius * torch.cos(second * (math.pi / 2.0**63)) * min(1.0, limit / 8)


def check_digits(
    tail: fx.GraphModule, program: Program, weights: Mapping[int, Weights], sample: torch.Tensor | None
) -> float:
    """Refuse a program whose result has too few right digits; the magnitude below which activations have too few.

    Args:
        tail: in eval mode.
        weights: of the program, real.
        sample: activations of the program's shape; None for noise.

    Returns:
        0 where the result for smaller and smaller activations is right; else a power of two.

    Raises:
        RangeError: the result for the sample is off by more than `TOLERANCE`; names the layer.
    """
    x = noise(program.input_shape, program.limit) if sample is None else sample.detach().double()
    rounded = _rounded_weights(program, weights)
    digits_lost = _lost_digits(tail, program, rounded, x)
    if digits_lost is not None:
        raise RangeError(_lost(program, weights, rounded, x, *digits_lost))

    def enough(power: int) -> bool:
        return _lost_digits(tail, program, rounded, x * 2.0**-power, smaller=2.0**-power) is None

    if enough(_TINIEST):
        return 0.0
    # The smallest power at which digits are lost: they are at `_TINIEST`, and not at 0.
    kept, lost = 0, _TINIEST
    while lost - kept > 1:
        middle = (kept + lost) // 2
        kept, lost = (middle, lost) if enough(middle) else (kept, middle)
    biggest = x.abs().max().item() * 2.0**-kept
    return 2.0 ** math.floor(math.log2(biggest)) if biggest else 0.0


def _lost_digits(
    tail: fx.GraphModule, program: Program, rounded: Mapping[int, Weights], x: torch.Tensor, *, smaller: float = 1.0
) -> tuple[float, float] | None:
    """By how much the program's result in fixed point differs from the tail's, and the largest result, if it is wrong.

    It is if it is off by more than `TOLERANCE` and by more than what rounding makes of every value, or by half of all
    there is. What torch itself is not sure of, as the norm of a single element, proves nothing.

    Args:
        smaller: how much smaller than usual the activations are.
    """
    parameter = next((value for value in tail.parameters() if value.is_floating_point()), torch.empty(0))
    with torch.no_grad():
        expected = tail(x.to(parameter.dtype)).double()
    if not torch.isfinite(expected).all() or not expected.numel():
        return None
    # A label is taken of the last value but one.
    output = run_rounded(program, rounded, x)[-2 if program.reveals_label else -1]
    if not program.reveals_label:
        output = _rounded(output, program.answer_bits)
    off, largest = (output - expected).abs().max().item(), expected.abs().max().item()
    if not (off > max(_ROUNDING * smaller, TOLERANCE * largest) or off > largest / 2):
        return None
    return (off, largest) if _sure(tail, x, expected, largest) else None


def _sure(tail: fx.GraphModule, x: torch.Tensor, expected: torch.Tensor, largest: float) -> bool:
    """Whether the tail's result is the same with twice the digits."""
    finer = copy.deepcopy(tail).double()
    try:
        with torch.no_grad():
            return bool((finer(x) - expected).abs().max() <= TOLERANCE * largest)
    except RuntimeError:
        # Constants of another dtype inside.
        return True


def _rounded_weights(program: Program, weights: Mapping[int, Weights]) -> dict[int, Weights]:
    scales = value_scales(program.steps, program.precision)
    return {
        number: Weights(
            _rounded(layer.weight.detach().double(), program.precision + program.steps[number - 1].digits),
            _rounded(layer.bias.detach().double(), scales[number]),
        )
        for number, layer in weights.items()
    }


def _rounded(value: torch.Tensor, bits: int) -> torch.Tensor:
    return (value * 2.0**bits).round_().mul_(2.0**-bits)


def run_rounded(program: Program, rounded: Mapping[int, Weights], x: torch.Tensor) -> list[torch.Tensor]:
    """Every value of the program in float64, the input first, rounded where it is on shares."""
    precision = program.precision
    scales, values = value_scales(program.steps, precision), [_rounded(x, precision)]
    for number, step in enumerate(program.steps, 1):
        operation, taken = OPERATIONS.get(step.op), []
        for index in step.inputs:
            bits = operation.takes(step, scales[index], precision)
            taken.append(values[index] if bits == scales[index] else _rounded(values[index], bits))
        slope = round(step.slope * 2**precision) / 2**precision
        output = operation.plain(msgspec.structs.replace(step, slope=slope), taken, rounded.get(number))
        # What a product leaves is exact.
        values.append(_rounded(output, scales[number]) if scales[number] < 2 * precision else output)
    return values


def _lost(
    program: Program,
    weights: Mapping[int, Weights],
    rounded: Mapping[int, Weights],
    x: torch.Tensor,
    off: float,
    largest: float,
) -> str:
    """Which layer's values lose their digits first, and what to do."""
    steps, precision = program.steps, program.precision
    exact, values = evaluate(steps, weights, x), run_rounded(program, rounded, x)
    number, reach = len(steps), largest
    for value in range(len(steps) + 1):
        most = exact[value].abs().max().item()
        # As the next layer takes it.
        if (_rounded(values[value], precision) - exact[value]).abs().max().item() > TOLERANCE * most > 0:
            number, reach = value, most
            break
    where = f"its values reach {reach:.2g}, where fixed point keeps multiples of {2.0**-precision:.2g}"
    result = f"the result is off by {off:.2g} of {largest:.2g}"
    if number == 0:
        return f"the activation loses its digits: {where}, and {result}; scale it up in the front"
    return (
        f"layer '{steps[number - 1].name}' loses its digits: {where}, and {result}; scale its weights up and the next "
        "layer's down, fold a norm into the layer before it, or calibrate with activations like those to come"
    )
