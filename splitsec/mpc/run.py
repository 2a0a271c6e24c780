"""Running a program on shares with CrypTen's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc import crypten_bridge as bridge
from splitsec.mpc.program import Program, Step, Weights
from splitsec.mpc.ring import encode
from splitsec.mpc.session import CLIENT, SERVER, Context


def run_program(
    program: Program,
    context: Context,
    *,
    activation: torch.Tensor | None = None,
    weights: Mapping[int, Weights] | None = None,
) -> torch.Tensor | None:
    """Evaluate the program with the other party and open the result to the client.

    Args:
        activation: at the client, its real tensor of `program.input_shape`; None at the server.
        weights: at the server, its weights by step number; None at the client.

    Returns:
        At the client the result as int64 ring elements with `program.precision` fractional bits, at the server None.
    """
    values: list[Any] = [_input_share(program.input_shape, activation, context, CLIENT, "the activation")]
    with bridge.running(context):
        values[0] = bridge.from_share(values[0], context.precision)
        for number, step in enumerate(program.steps, 1):
            held = None if weights is None else weights.get(number)
            values.append(_apply(step, [values[index] for index in step.inputs], held, context))
        share = bridge.share_of(values[-1]).contiguous()
    theirs = context.collect(share, CLIENT)
    return None if theirs is None else share + theirs


def make_plan(program: Program, rank: int) -> Any:
    """The correlations that one run of the program takes."""
    from splitsec.mpc.session import Planner

    planner = Planner(rank, program.precision)
    server, client = rank == SERVER, rank == CLIENT
    weights = {
        number: Weights(torch.zeros(step.weight), torch.zeros(step.weight[0]))
        for number, step in enumerate(program.steps, 1)
        if step.weight
    }
    run_program(
        program,
        planner,
        activation=torch.zeros(program.input_shape) if client else None,
        weights=weights if server else None,
    )
    return planner.plan


def _input_share(
    shape: tuple[int, ...], secret: torch.Tensor | None, context: Context, owner: int, what: str
) -> torch.Tensor:
    # The mask comes from the seed that both parties share, so sharing an input costs no message: the other party's
    # share is the mask itself.
    mask = context.common(shape)
    if context.rank != owner:
        return mask
    if secret is None:
        raise ValueError(f"{what} is missing at its owner")
    return encode(secret, context.precision, what=what) - mask


def _apply(step: Step, inputs: list[Any], held: Weights | None, context: Context) -> Any:
    x = inputs[0]
    if step.op == "linear":
        weight, bias = _weight_shares(step, held, context)
        return x.matmul(weight.t()) + bias
    if step.op == "conv2d":
        weight, bias = _weight_shares(step, held, context)
        product = x.conv2d(weight, stride=step.stride, padding=step.padding, dilation=step.dilation, groups=step.groups)
        return product + bias.reshape(1, -1, 1, 1)
    if step.op == "relu":
        return x.relu()
    if step.op == "max_pool2d":
        return _max_pool(step, x, context)
    if step.op == "avg_pool2d":
        return x.avg_pool2d(step.kernel, stride=step.stride, padding=step.padding)
    if step.op == "add":
        return inputs[0] + inputs[1]
    if step.op == "reshape":
        return x.reshape(step.shape)
    raise UnsupportedLayerError(f"step '{step.name}' ({step.op}) cannot be run")


def _weight_shares(step: Step, held: Weights | None, context: Context) -> tuple[Any, Any]:
    what = f"layer '{step.name}'"
    weight = None if held is None else held.weight
    bias = None if held is None else held.bias
    return (
        bridge.from_share(_input_share(step.weight, weight, context, SERVER, what), context.precision),
        bridge.from_share(_input_share(step.weight[:1], bias, context, SERVER, what), context.precision),
    )


def _max_pool(step: Step, x: Any, context: Context) -> Any:
    # A tree of max(a, b) = b + relu(a - b) over the positions of the window. CrypTen's own max pooling finds an
    # argmax with random ties, which costs several times as much.
    share = bridge.share_of(x)
    height, width = step.padding
    # Padding must lose every comparison: far below any value, yet within range.
    lowest = -(1 << (62 - context.precision - 1)) if context.rank == SERVER else 0
    share = torch.nn.functional.pad(share, (width, width, height, height), value=lowest)
    rows, columns = step.shape[-2:]
    windows = [
        share[
            :,
            :,
            i : i + (rows - 1) * step.stride[0] + 1 : step.stride[0],
            j : j + (columns - 1) * step.stride[1] + 1 : step.stride[1],
        ]
        for i in range(step.kernel[0])
        for j in range(step.kernel[1])
    ]
    while len(windows) > 1:
        half = len(windows) // 2
        first, second, rest = windows[:half], windows[half : 2 * half], windows[2 * half :]
        left, right = torch.stack(first), torch.stack(second)
        positive = bridge.share_of(bridge.from_share(left - right, context.precision).relu())
        windows = [*(right + positive).unbind(0), *rest]
    return bridge.from_share(windows[0].contiguous(), context.precision)
