"""A tail's steps, evaluated in plain: what lowering makes of a model, without shares and their rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from splitsec.cut import trace
from splitsec.cut.tracing import trace_exported
from splitsec.errors import CutError
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.program.bounds import evaluate
from splitsec.mpc.program.execute import run_step
from splitsec.mpc.program.lowering import lower_tail
from splitsec.mpc.program.operations import OPERATIONS, Value
from splitsec.mpc.program.program import Step
from splitsec.mpc.program.shapes import ShapeNotes
from splitsec.mpc.ring import decode, encode
from support.layer_cases import Of
from support.two_party import run_both, share


def lowered(layer: nn.Module | Callable[..., Any], x: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    """Lower a layer or a function; return its operations, and its value for `x` by the steps in float64."""
    return _steps_of(trace((layer if isinstance(layer, nn.Module) else Of(layer)).eval()), x)


def _steps_of(tail: fx.GraphModule, x: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    with torch.no_grad():
        ShapeNotes(tail).run(x.float())
    lowering = lower_tail(tail, tuple(x.shape), 16)
    return [step.op for step in lowering.steps], evaluate(lowering.steps, lowering.weights, x)[-1]


def expect_same(layer: nn.Module | Callable[..., Any], x: torch.Tensor, *, off: float = 1e-5) -> list[str]:
    """Fail unless the steps of the traced and of the exported graph give what torch gives; return their operations."""
    with torch.no_grad():
        expected = (layer.eval() if isinstance(layer, nn.Module) else layer)(x)
    operations, value = lowered(layer, x)
    torch.testing.assert_close(value.float(), expected, atol=off, rtol=off)
    try:
        exported = trace_exported((layer if isinstance(layer, nn.Module) else Of(layer)).eval(), x)
    except CutError as error:
        if "one size of batch" in str(error):
            # Such a function is no layer of a model.
            return operations
        raise
    _, value = _steps_of(exported, x)
    torch.testing.assert_close(value.float(), expected, atol=off, rtol=off)
    return operations


def run_plain(op: str, *inputs: torch.Tensor, weights: Any = None, **attributes: Any) -> torch.Tensor:
    """Return one operation's result on plain values, of the shape that torch would give it."""
    step = step_of(op, *inputs, **attributes)
    return OPERATIONS.get(op).plain(step, [value.double() for value in inputs], weights)


def step_of(op: str, *inputs: torch.Tensor, **attributes: Any) -> Step:
    """Return a step whose inputs are the first values, of the first input's shape unless `shape` says otherwise."""
    shape = attributes.pop("shape", tuple(inputs[0].shape))
    return Step(op, "step", tuple(range(len(inputs))), tuple(shape), bits=attributes.pop("bits", 7), **attributes)


def run_shared(op: str, *inputs: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """Return one operation's result, run by both parties on shares of the inputs."""
    step = step_of(op, *inputs, **attributes)

    def protocol(context: Context) -> torch.Tensor | None:
        values = [Value(share(context, encode(value.float())), context.precision) for value in inputs]
        result = run_step(1, step, values, None, context)
        other = context.collect(result.share.contiguous(), CLIENT)
        return None if other is None else decode(result.share + other, result.scale)

    (_, opened), _ = run_both(protocol)
    return opened  # type: ignore[no-any-return]


def expect_shared(op: str, *inputs: torch.Tensor, off: float = 2.0**-12, **attributes: Any) -> None:
    """Fail unless both parties compute on shares what the operation is in plain, and its bound holds."""
    plain = run_plain(op, *inputs, **attributes)
    attributes.pop("bits", None)
    torch.testing.assert_close(run_shared(op, *inputs, **attributes).double(), plain, atol=off, rtol=0)
    bounds = [value.abs().max().item() for value in inputs]
    assert plain.abs().max() <= OPERATIONS.get(op).bound(step_of(op, *inputs, **attributes), bounds, None) + off
