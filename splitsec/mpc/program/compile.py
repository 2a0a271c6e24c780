"""From a traced tail to a program: lowering, graph passes, and the bounds of every value.

Passes: batch norm is folded into the layer before it, and a ReLU before max pooling moves behind it. Average pooling
over a power of two is a local sum whose divisor is a shift of the scale. A truncation never stands alone if it can be
helped: products keep their doubled scale until the next opening, which truncates them (see `run`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import torch
from torch import fx

from splitsec.errors import MessageError, RangeError, UnsupportedLayerError, first_line
from splitsec.mpc.program.bounds import (
    MARGIN,
    SMALL_VALUE,
    Memory,
    batches,
    guaranteed_bounds,
    input_bits,
    measured,
    measured_bounds,
    range_checks,
)
from splitsec.mpc.program.equalise import equalise, powers_of, raw_bounds
from splitsec.mpc.program.lowering import Lowering, lower_tail, refuse_lookups
from splitsec.mpc.program.operations import Size, value_scales
from splitsec.mpc.program.operations.crypten import through_crypten
from splitsec.mpc.program.program import MOST_ANSWER_BITS, MOST_DIGITS, Engine, Program, Reveal, Shape, Step, Weights
from splitsec.mpc.program.resolution import check_digits
from splitsec.mpc.program.shapes import ShapeNotes
from splitsec.mpc.program.validate import check_program
from splitsec.mpc.protocols.linear import laid_out
from splitsec.mpc.ring import PRECISION_BITS, encode

log = logging.getLogger(__name__)
# Layers whose largest weight is below this get more fractional bits, at most this number.
SMALL_WEIGHT = 2.0**-5
# Values are raised whose bound is below this part of the input's.
SMALL_BOUND = 2.0**-4
WEIGHTED = ("linear", "conv2d", "scale")
# What an activation may reach unless a session asks for more: beyond what normalised networks show, and small enough
# for narrow comparisons.
DEFAULT_LIMIT = 256.0


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What a program is to do, beside what its tail says.

    Attributes:
        precision: fractional bits of a value.
        limit: the magnitude that an activation may reach; a smaller one makes comparisons cheaper.
        guarantee: False to measure on the calibration even where the weights guarantee bounds, which are wider.
        reveal: `"label"` opens to the client the class of the largest value of each sample, and nothing else.
        checked: compare every layer's values with its bound when the program runs, and have the client raise if one
            is beyond.
        comparison: `"tables"`, or `"dcf"` for slow links: fewer rounds, more offline bytes and arithmetic.
        resolved: check that fixed point keeps digits enough, on the calibration or on noise (see `resolving`); False
            where the program only tells what it costs.
        engine: `"crypten"` runs layers through CrypTen's functions, as a reference.
    """

    precision: int = PRECISION_BITS
    limit: float = DEFAULT_LIMIT
    guarantee: bool = True
    reveal: Reveal = "logits"
    checked: bool = False
    comparison: str = "tables"
    resolved: bool = True
    engine: Engine = "splitsec"


USUAL = CompileOptions()


def compile_tail(
    tail: fx.GraphModule,
    input_shape: Shape,
    options: CompileOptions = USUAL,
    *,
    calibration: torch.Tensor | None = None,
    memory: Memory | None = None,
    shaped: bool = False,
) -> tuple[Program, dict[int, Weights]]:
    """Return the program of a traced tail in eval mode, and its weights by step number.

    Args:
        tail: a `torch.fx.GraphModule` with one tensor input and one tensor output.
        input_shape: shape of the activation, batch dimension first.
        options: what the program is to do.
        calibration: activations of the same shape but for the batch dimension. Every layer's bound is a guarantee
            computed from the weights; where deep networks outgrow that, or these activations come close to the limit,
            it is the largest value measured on them, times `MARGIN`.
        memory: of other tails of the same model, compiled with a calibration of one batch, that of the same sample.
        shaped: the nodes know the shapes that they have for `input_shape`.

    Raises:
        UnsupportedLayerError: a layer without an encrypted form, with its name.
        RangeError: a weight that is not finite or too large for fixed point, or values that lose their digits, with
            the layer.
        MessageError: a calibration of another shape.
    """
    precision = options.precision
    _check_arguments(input_shape, options.limit, calibration)
    lowering = _lowered(tail, input_shape, precision, shaped=shaped)
    _fuse_relu_and_max_pool(lowering.steps, input_shape)
    # By the weights as they are, and by those that small values leave to the layers behind them.
    _give_digits(lowering)
    largest = _raise_small_values(lowering, tuple(input_shape), options.limit, calibration, memory)
    _give_digits(lowering)
    sizes = {
        number: (memory or Memory()).size_of(lowering.steps[number - 1], layer, precision)
        for number, layer in lowering.weights.items()
    }
    limited_by, guaranteed = "", True
    if largest is None:
        bounds, limit, limited_by = guaranteed_bounds(lowering.steps, sizes, precision, options.limit)
    else:
        bounds, limit, guaranteed = _calibrated(lowering, sizes, options.limit, largest, guarantee=options.guarantee)
    label = options.reveal == "label"
    steps = [*lowering.steps, *([_label_step(lowering.steps, input_shape)] if label else [])]
    steps = [msgspec.structs.replace(step, bits=input_bits(step, bounds, precision)) for step in steps]
    if options.engine == "crypten":
        steps = through_crypten(steps)
    checks = range_checks(lowering.steps, sizes, bounds, precision, label=label) if options.checked else ()
    # A larger limit, which a client's calibration may have made, is worth no more digits of the weights.
    answer_bits = _answer_bits(precision, min(limit, DEFAULT_LIMIT), bounds[len(lowering.steps)])
    program = Program(
        input_shape, tuple(steps), limit, limited_by, precision, checks, options.comparison, guaranteed, answer_bits
    )
    try:
        check_program(program)
    except MessageError as error:
        raise UnsupportedLayerError(f"the tail cannot run encrypted: {error}") from error
    if options.resolved:
        sample = None if calibration is None else next(batches(calibration, input_shape[0]))
        with _in_eval_mode(tail):
            least = check_digits(tail, program, lowering.weights, sample)
        program = msgspec.structs.replace(program, least=least)
    return program, lowering.weights


def _check_arguments(input_shape: Shape, limit: float, calibration: torch.Tensor | None) -> None:
    if not 0 < limit < math.inf:
        raise MessageError(f"a limit of {limit} is no magnitude; give a number above 0")
    if calibration is None:
        return
    if not (len(calibration) and torch.isfinite(calibration).all()):
        raise RangeError("the calibration is empty or holds a value that is not a finite number")
    if tuple(calibration.shape[1:]) != tuple(input_shape[1:]):
        have, due = ("x".join(map(str, shape[1:])) for shape in (calibration.shape, input_shape))
        raise MessageError(f"the calibration's activations have shape {have}; the tail is compiled for {due}")


def _lowered(tail: fx.GraphModule, input_shape: Shape, precision: int, *, shaped: bool) -> Lowering:
    """Return the tail's steps and weights as they are, with the shape of every value."""
    refuse_lookups(tail)
    with _in_eval_mode(tail):
        try:
            if not shaped:
                parameter = next(tail.parameters(), torch.empty(0))
                with torch.no_grad():
                    ShapeNotes(tail).run(torch.zeros(input_shape, dtype=parameter.dtype))
            return lower_tail(tail, tuple(input_shape), precision)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            shape = "x".join(map(str, input_shape))
            raise MessageError(f"the tail cannot take an activation of shape {shape}: {first_line(error)}") from error


def _label_step(steps: Sequence[Step], input_shape: Shape) -> Step:
    """Return the step that takes the class of the largest value; raises `UnsupportedLayerError` without classes."""
    output = steps[-1].shape if steps else input_shape
    if len(output) != 2:
        raise UnsupportedLayerError(f"a label needs an output of samples by classes, not of shape {output}")
    return Step("argmax", "label", (len(steps),), output)


def _answer_bits(precision: int, limit: float, bound: float) -> int:
    """Return how many fractional bits of a result are worth opening.

    The input is exact to `precision` fractional bits, so a result that is smaller by a factor has as many digits more.
    """
    smaller = math.floor(math.log2(limit / bound)) if bound > 0 else 0
    return min(MOST_ANSWER_BITS, precision + max(0, smaller))


@contextmanager
def _in_eval_mode(tail: fx.GraphModule) -> Iterator[None]:
    modes = {module: module.training for module in tail.modules()}
    tail.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _raise_small_values(
    lowering: Lowering, shape: Shape, limit: float, calibration: torch.Tensor | None, memory: Memory | None
) -> list[float] | None:
    """Scale weights so that values which are small all over keep their digits; the magnitudes measured, if any are."""
    steps, weights = lowering.steps, lowering.weights
    if calibration is None:
        aim = min(limit, DEFAULT_LIMIT)
        equalise(steps, weights, powers_of(steps, raw_bounds(steps, weights, aim), small=SMALL_BOUND * aim, aim=aim))
        return None
    largest = measured(steps, weights, calibration, shape, memory)
    powers = powers_of(steps, largest, small=SMALL_VALUE, aim=SMALL_VALUE)
    equalise(steps, weights, powers)
    return [magnitude * 2.0**power for magnitude, power in zip(largest, powers, strict=True)]


def _give_digits(lowering: Lowering) -> None:
    """More fractional bits for layers whose weights are small, so that they keep their digits.

    The client learns their order of magnitude.
    """
    for number, layer in lowering.weights.items():
        step = lowering.steps[number - 1]
        largest = layer.weight.abs().max().item() if step.op in WEIGHTED else 0.0
        if 0.0 < largest < SMALL_WEIGHT:
            digits = max(step.digits, min(MOST_DIGITS, math.floor(-math.log2(largest)) - 3))
            lowering.steps[number - 1] = msgspec.structs.replace(step, digits=digits)


def _calibrated(
    lowering: Lowering,
    sizes: Mapping[int, Size],
    limit: float,
    largest: Sequence[float],
    *,
    guarantee: bool,
) -> tuple[list[float], float, bool]:
    """Return a bound for every value, the limit of the input, and whether they are guaranteed.

    Args:
        largest: magnitudes of the values in calibration, the input's first.
    """
    steps, weights, precision = lowering.steps, lowering.weights, lowering.precision
    if guarantee and MARGIN * largest[0] < limit:
        try:
            bounds, limit, _ = guaranteed_bounds(steps, sizes, precision, limit, least=limit)
        except RangeError:
            log.debug("the weights guarantee no bounds; they are measured")
        else:
            return bounds, limit, True
    bounds = measured_bounds(steps, weights, largest, precision)
    return bounds, 2.0 ** math.ceil(math.log2(bounds[0])), False


def _users(steps: list[Step], number: int) -> list[int]:
    return [index for index, step in enumerate(steps, 1) if number in step.inputs]


def _fuse_relu_and_max_pool(steps: list[Step], input_shape: Shape) -> None:
    # max(relu(x)) = relu(max(x)) = max(x, 0): one step, in the place of the later one; the other becomes a mere name.
    for number, step in enumerate(steps, 1):
        users = _users(steps, number)
        if len(users) != 1 or {step.op, steps[users[0] - 1].op} != {"relu", "max_pool2d"}:
            continue
        later = steps[users[0] - 1]
        pool = step if step.op == "max_pool2d" else later
        steps[users[0] - 1] = msgspec.structs.replace(pool, shape=later.shape, zero=True)
        before = steps[step.inputs[0] - 1].shape if step.inputs[0] else input_shape
        steps[number - 1] = msgspec.structs.replace(
            step, op="reshape", shape=before, kernel=(), stride=(1, 1), padding=(0, 0)
        )
        steps[users[0] - 1] = msgspec.structs.replace(steps[users[0] - 1], inputs=(number,))


def encode_weights(program: Program, weights: Mapping[int, Weights]) -> dict[int, Weights]:
    """Weights in the ring, as `run_program` takes them."""
    encoded, scales = {}, value_scales(program.steps, program.precision)
    for number, layer in weights.items():
        step = program.steps[number - 1]
        bias = torch.round(layer.bias.double() * 2.0 ** scales[number]).to(torch.int64)
        bias = bias.view(1, -1, 1, 1) if step.op == "conv2d" else bias
        encoded[number] = Weights(laid_out(encode(layer.weight, program.precision + step.digits)), bias)
    return encoded
