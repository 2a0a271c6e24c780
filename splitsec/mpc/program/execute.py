"""Running a program on shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from splitsec.errors import MessageError, RangeError
from splitsec.mpc.context import CLIENT, SERVER, Context
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.program.operations import OPERATIONS, Running, Value, scaled
from splitsec.mpc.program.program import Program, Step, Weights
from splitsec.mpc.protocols.sign import at_least_zero
from splitsec.mpc.ring import HEADROOM_BITS, decode, encode
from splitsec.transport.codec import expect_shape


@dataclass(frozen=True)
class Encoded:
    """Ring elements of an input: an activation that `encode_activation` has encoded, or a party's share of one.

    A type of its own, since a tensor of whole numbers could be both, an activation or a share, and would be wrong as
    the other.

    Attributes:
        elements: int64 of the program's input shape.

    Raises:
        MessageError: they have another dtype.
    """

    elements: torch.Tensor

    def __post_init__(self) -> None:
        if self.elements.dtype != torch.int64:
            raise MessageError(f"encoded elements have dtype {self.elements.dtype}, expected torch.int64")


def run_program(
    program: Program,
    context: Context,
    *,
    activation: torch.Tensor | Encoded | None = None,
    weights: Mapping[int, Weights] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> torch.Tensor | None:
    """Evaluate the program with the other party and open the result to the client.

    Args:
        activation: at the client, its real tensor of `program.input_shape`, or `Encoded`; None at the server. Where
            both have shares of the input, each its own, `Encoded`.
        weights: at the server, its encoded weights by step number; at the client its shares of those that no party
            knows, if there are some.
        on_step: called with a step's number when it is done.

    Returns:
        At the client the real result, float32 of `program.output_shape`, or int64 labels; at the server None.

    Raises:
        RangeError: at the client, in checked mode: names the first layer whose values left their bound.
        MessageError: the activation is of whole numbers, or `Encoded` in another shape.
    """
    if activation is None:
        activation = Encoded(torch.zeros(program.input_shape, dtype=torch.int64))
    elif not isinstance(activation, Encoded):
        activation = encode_activation(program, activation)
    expect_shape(activation.elements, program.input_shape, what="the encoded activation")
    values = [Value(activation.elements, context.precision)]
    for number, step in enumerate(program.steps, 1):
        layer = None if weights is None else weights.get(number)
        values.append(run_step(number, step, [values[index] for index in step.inputs], layer, context))
        if on_step is not None:
            on_step(number)
    result = values[-1]
    share = result.share
    if context.rank == SERVER and not program.reveals_label and not context.planning:
        share = blurred(share, result.scale - program.answer_bits)
    other = context.collect(share.contiguous(), CLIENT)
    if program.checks:
        if on_step is not None:
            on_step(len(program.steps) + 1)
        check_ranges(program, values, context)
    if other is None:
        return None
    if program.reveals_label:
        # NumPy's takes the first of several: those whose logits are equal to the last bit.
        return torch.from_numpy((result.share + other).numpy().argmax(1))
    return decode(result.share + other, result.scale)


def blurred(share: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the server's share of a result with uniform noise over its `bits` lowest bits, int64.

    A product has twice the fractional bits that its factors had, and in the last layer these are the weights to the
    bit. With noise u the client opens z + u: its lowest bits are uniform whatever z is, and the others are z rounded up
    with the probability that is its fraction. That is what stochastic truncation opens (SecureML, P. Mohassel and Y.
    Zhang, IEEE S&P 2017, section 4.1, takes the nearest instead), without a round. A threshold that is always at the
    same place would give a bit of the fraction to each query that is chosen with care; this one moves.
    """
    if bits <= 0:
        return share
    noise = Stream(fresh_seed()).ring(share.shape) >> (64 - bits)
    return share + noise


def check_ranges(program: Program, values: Sequence[Value], context: Context) -> None:
    """Count, for every check of the program, the values beyond the bound; only the client learns the counts.

    All bounds are compared at once, on both sides: five more rounds a query, whatever the number of layers. A count
    that is not zero says that the result is wrong, so the client raises.
    """
    sides = []
    for check in program.checks:
        value = values[check.value]
        bound = (1 << (check.bits + value.scale)) - 1 if context.rank == SERVER else 0
        sides += [bound - value.share.reshape(-1), bound + value.share.reshape(-1)]
    inside = at_least_zero(context, torch.cat(sides), high=HEADROOM_BITS)
    counts = torch.stack(
        [part.sum() for part in inside.split([2 * values[check.value].share.numel() for check in program.checks])]
    )
    other = context.collect(counts, CLIENT)
    if other is None or context.planning:
        return
    for check, count in zip(program.checks, (counts + other).tolist(), strict=True):
        beyond = 2 * values[check.value].share.numel() - count
        if beyond:
            name = program.steps[check.value - 1].name if check.value else "the input"
            raise RangeError(
                f"layer '{name}' overflowed: {beyond} of its values reach {2.0**check.bits:g} and the result is wrong; "
                "calibrate the tail with activations like these, or scale the input down"
            )


def encode_activation(program: Program, activation: torch.Tensor, cut: str = "input") -> Encoded:
    """Return the client's real activation as ring elements.

    Args:
        activation: of any dtype of real numbers, and of `program.input_shape`.

    Raises:
        MessageError: it is of whole numbers, truth values or complex numbers, or of another shape; names the cut.
        RangeError: it is not finite or reaches `program.limit`; names the cut and the layer that sets the limit.
    """
    what = f"the activation at cut '{cut}'"
    if not isinstance(activation, torch.Tensor):
        raise MessageError(f"{what} is a {type(activation).__name__}; give a torch.Tensor")
    if not activation.is_floating_point():
        raise MessageError(
            f"{what} is {activation.dtype}; give real numbers, such as x.float(), scaled as the front scales them"
        )
    expect_shape(activation, program.input_shape, what=what)
    reason = (
        f"for which layer '{program.limited_by}' cannot overflow; scale the input down"
        if program.limited_by
        else "that the tail was compiled for; scale the input down, or calibrate the tail with activations like these"
    )
    elements = encode(activation, program.precision, limit=program.limit, what=what, why=f"the largest {reason}")
    if program.least and len(activation):
        largest = activation.detach().abs().reshape(len(activation), -1).amax(1)
        for row in ((largest > 0) & (largest < program.least)).nonzero().view(-1).tolist():
            raise RangeError(
                f"{what} is nowhere above {largest[row].item():.2g} in sample {row}: of less than {program.least:.2g} "
                "fixed point keeps too few digits for this tail; scale the activations up in the front"
            )
    return Encoded(elements)


def run_step(number: int, step: Step, inputs: Sequence[Value], weights: Weights | None, context: Context) -> Value:
    """One step at one party: its share of the result."""
    operation, precision = OPERATIONS.get(step.op), context.precision
    operands = [scaled(x, operation.takes(step, x.scale, precision), context) for x in inputs]
    scale = operation.gives(step, [x.scale for x in operands], precision)
    return Value(operation.run(Running(number, step, operands, weights, context, scale)), scale)
