"""Running a program on shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from splitsec.errors import RangeError, UnsupportedLayerError
from splitsec.mpc.context import CLIENT, SERVER, Context
from splitsec.mpc.linear import LinearMask, linear
from splitsec.mpc.maximum import largest
from splitsec.mpc.program import CRYPTEN_OPS, Program, Step, Weights, input_scale, output_scale
from splitsec.mpc.ring import HEADROOM_BITS, decode, encode
from splitsec.mpc.selection import relu
from splitsec.mpc.sign import at_least_zero
from splitsec.mpc.truncation import truncate


@dataclass(frozen=True)
class Value:
    """A party's share of a tensor with `scale` fractional bits: the working precision, or more after a product."""

    share: torch.Tensor
    scale: int


def run_program(
    program: Program,
    context: Context,
    *,
    activation: torch.Tensor | None = None,
    weights: Mapping[int, Weights] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> torch.Tensor | None:
    """Evaluate the program with the other party and open the result to the client.

    Args:
        activation: at the client, its tensor of `program.input_shape`, real or encoded by `encode_activation`; None at
            the server.
        weights: at the server, its encoded weights by step number; None at the client.
        on_step: called with a step's number when it is done.

    Returns:
        At the client the real result, float32 of `program.output_shape`, or int64 labels; at the server None.

    Raises:
        RangeError: at the client, in checked mode: names the first layer whose values left their bound.
    """
    if context.rank == CLIENT and activation is not None:
        first = encode_activation(program, activation) if activation.is_floating_point() else activation
    else:
        first = torch.zeros(program.input_shape, dtype=torch.int64)
    values = [Value(first, context.precision)]
    for number, step in enumerate(program.steps, 1):
        held = None if weights is None else weights.get(number)
        values.append(_apply(number, step, [values[index] for index in step.inputs], held, context))
        if on_step is not None:
            on_step(number)
    result = values[-1]
    theirs = context.collect(result.share.contiguous(), CLIENT)
    if program.checks:
        if on_step is not None:
            on_step(len(program.steps) + 1)
        check_ranges(program, values, context)
    if theirs is None:
        return None
    if program.reveals_label:
        # NumPy's takes the first of several: those whose logits are equal to the last bit.
        return torch.from_numpy((result.share + theirs).numpy().argmax(1))
    return decode(result.share + theirs, result.scale)


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
    theirs = context.collect(counts, CLIENT)
    if theirs is None or context.planning:
        return
    for check, count in zip(program.checks, (counts + theirs).tolist(), strict=True):
        beyond = 2 * values[check.value].share.numel() - count
        if beyond:
            name = program.steps[check.value - 1].name if check.value else "the input"
            raise RangeError(
                f"layer '{name}' overflowed: {beyond} of its values reach {2.0**check.bits:g} and the result is wrong; "
                "calibrate the tail with activations like these, or scale the input down"
            )


def encode_activation(program: Program, activation: torch.Tensor, cut: str = "input") -> torch.Tensor:
    """The client's real activation as ring elements, int64.

    Raises:
        RangeError: it is not finite or reaches `program.limit`; names the cut and the layer that sets the limit.
    """
    reason = (
        f"for which layer '{program.limited_by}' cannot overflow; scale the input down"
        if program.limited_by
        else "that the tail was compiled for; scale the input down, or calibrate the tail with activations like these"
    )
    return encode(
        activation,
        program.precision,
        limit=program.limit,
        what=f"the activation at cut '{cut}'",
        why=f"the largest {reason}",
    )


def _apply(number: int, step: Step, inputs: list[Value], held: Weights | None, context: Context) -> Value:
    inputs = [_scaled(x, input_scale(step, x.scale, context.precision), context) for x in inputs]
    scale = output_scale(step, [x.scale for x in inputs], context.precision)
    share = inputs[0].share
    match step.op:
        case "linear" | "conv2d":
            item = LinearMask(
                number,
                step.op,  # type: ignore[arg-type]
                tuple(share.shape),
                step.weight,
                step.stride,
                step.padding,
                step.dilation,
                step.groups,
            )
            weight, bias = (None, None) if held is None else (held.weight, held.bias)
            made = linear(context, share, item, weight=weight, bias=bias)
        case "relu":
            # One bit above the bound, for rounding and for what the truncation's low bits may carry.
            high = step.bits + inputs[0].scale + 1
            made = relu(context, share, shift=inputs[0].scale - context.precision, high=high)
        case "leaky_relu":
            made = _leaky_relu(step, inputs[0], context)
        case "hardtanh":
            made = _hardtanh(step, inputs[0], context)
        case "max_pool2d":
            made = _max_pool(step, inputs[0], context)
        case "avg_pool2d":
            made = F.avg_pool2d(share, step.kernel, step.stride, step.padding, divisor_override=1)
            if scale > inputs[0].scale + context.precision:
                made = made * round(2 ** (scale - inputs[0].scale) / math.prod(step.kernel))
        case "add":
            made = sum((x.share << (scale - x.scale) for x in inputs), torch.zeros((), dtype=torch.int64))
        case "cat":
            made = torch.cat([x.share << (scale - x.scale) for x in inputs], step.dim)
        case "reshape":
            made = share.reshape(step.shape)
        case "argmax":
            made = _winners(share, step.bits + inputs[0].scale + 2, context)
        case op if op in CRYPTEN_OPS:
            made = _crypten(step, share, context)
        case op:
            raise UnsupportedLayerError(f"step '{step.name}' ({op}) cannot be run")
    return Value(made, scale)


def _scaled(x: Value, scale: int, context: Context) -> Value:
    """The value with `scale` fractional bits; one round if it has more."""
    if x.scale == scale:
        return x
    return Value(truncate(context, x.share, x.scale - scale), scale)


def _leaky_relu(step: Step, x: Value, context: Context) -> torch.Tensor:
    """slope * x + (1 - slope) * relu(x) with a product's scale."""
    precision = context.precision
    positive = relu(context, x.share, shift=x.scale - precision, high=step.bits + x.scale + 1)
    # At this scale the slope's digits beyond the working precision and the input's are both kept.
    slope: int = round(step.slope * 2**precision)
    rest = _scaled(x, precision, context).share
    made: torch.Tensor = rest * slope + positive * (2**precision - slope)
    return made


def _hardtanh(step: Step, x: Value, context: Context) -> torch.Tensor:
    """low + relu(x - low) - relu(x - high), both at once."""
    ends = torch.tensor([step.low, step.high], dtype=torch.float64)
    moved = torch.round(ends * 2.0**x.scale).to(torch.int64).view(2, *[1] * x.share.dim())
    both = x.share[None] - moved if context.rank == SERVER else x.share[None].expand(2, *x.share.shape)
    above = relu(context, both, shift=x.scale - context.precision, high=step.bits + x.scale + 1)
    made: torch.Tensor = above[0] - above[1]
    return made + round(step.low * 2**context.precision) if context.rank == SERVER else made


def _max_pool(step: Step, x: Value, context: Context) -> torch.Tensor:
    """The maximum of each window."""
    height, width = step.padding
    # Padding must lose every comparison, and stay within the bound of differences.
    lowest = -(1 << (step.bits + x.scale)) if context.rank == SERVER else 0
    share = F.pad(x.share, (width, width, height, height), value=lowest)
    rows, columns = step.shape[-2:]
    candidates = torch.stack(
        [
            share[
                :,
                :,
                i : i + (rows - 1) * step.stride[0] + 1 : step.stride[0],
                j : j + (columns - 1) * step.stride[1] + 1 : step.stride[1],
            ]
            for i in range(step.kernel[0])
            for j in range(step.kernel[1])
        ]
    ).view(math.prod(step.kernel), -1)
    shift, high = x.scale - context.precision, step.bits + x.scale + 2
    return largest(context, candidates, zero=step.zero, shift=shift, high=high).view(step.shape)


def _winners(share: torch.Tensor, high: int, context: Context) -> torch.Tensor:
    """Shares of 1 where a class has the largest value of its sample, else 0: int64 (samples, classes)."""
    most = largest(context, share.t().contiguous(), zero=False, high=high)
    return at_least_zero(context, share - most[:, None], high=high)


def _crypten(step: Step, share: torch.Tensor, context: Context) -> torch.Tensor:
    # Imported here, so that a program without such functions does not load CrypTen.
    from splitsec.mpc import crypten_bridge as bridge

    with bridge.running(context):
        tensor: Any = bridge.from_share(share, context.precision)
        made = tensor.softmax(step.dim) if step.op == "softmax" else getattr(tensor, step.op)()
        return bridge.share_of(made)
