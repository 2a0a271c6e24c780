"""Operations with weights that the server alone knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from splitsec.mpc.program.operations.base import (
    OPERATIONS,
    Operation,
    Running,
    Size,
    takes_little_more,
    takes_product,
)
from splitsec.mpc.program.program import Step, Weights
from splitsec.mpc.protocols.linear import LinearMask, linear
from splitsec.mpc.protocols.shared_linear import SharedLinear, shared_linear


def _linear(running: Running) -> torch.Tensor:
    step, share = running.step, running.first.share
    options = (step.op, tuple(share.shape), step.weight, step.stride, step.padding, step.dilation, step.groups)
    if step.owner:
        shared = SharedLinear(running.number, *options, owner=step.owner, source=step.source)  # type: ignore[arg-type]
        return shared_linear(running.context, share, shared, running.weights)
    item = LinearMask(running.number, *options)  # type: ignore[arg-type]
    weight, bias = (None, None) if running.weights is None else (running.weights.weight, running.weights.bias)
    return linear(running.context, share, item, weight=weight, bias=bias)


def _plain_linear(_step: Step, inputs: Sequence[torch.Tensor], weights: Weights | None) -> torch.Tensor:
    assert weights is not None
    return F.linear(inputs[0], weights.weight.double(), weights.bias.double())


def _plain_conv(step: Step, inputs: Sequence[torch.Tensor], weights: Weights | None) -> torch.Tensor:
    assert weights is not None
    return F.conv2d(
        inputs[0], weights.weight.double(), weights.bias.double(), step.stride, step.padding, step.dilation, step.groups
    )


def _plain_scale(_step: Step, inputs: Sequence[torch.Tensor], weights: Weights | None) -> torch.Tensor:
    assert weights is not None
    return inputs[0] * weights.weight + weights.bias


def _shift(running: Running) -> torch.Tensor:
    # What the server alone knows it adds alone; what nobody knows both add in shares. A planning run has no weights.
    share = running.first.share
    return share if running.weights is None else share + running.weights.bias


def _plain_shift(_step: Step, inputs: Sequence[torch.Tensor], weights: Weights | None) -> torch.Tensor:
    assert weights is not None
    return inputs[0] + weights.bias


def _bound(_step: Step, bounds: Sequence[float], size: Size | None) -> float:
    assert size is not None
    return size.norm * bounds[0] + size.bias


def _gives(step: Step, scales: Sequence[int], precision: int) -> int:
    return scales[0] + precision + step.digits


OPERATIONS.register_all(
    {
        "linear": Operation(
            run=_linear, plain=_plain_linear, takes=takes_little_more, gives=_gives, bound=_bound, grows=True
        ),
        "conv2d": Operation(
            run=_linear, plain=_plain_conv, takes=takes_little_more, gives=_gives, bound=_bound, grows=True
        ),
        # Element by element, by weights that broadcast: batch norm alone, the scale of a layer norm.
        "scale": Operation(
            run=_linear, plain=_plain_scale, takes=takes_little_more, gives=_gives, bound=_bound, grows=True
        ),
        # A constant of the server's is added: positions, class tokens.
        "shift": Operation(run=_shift, plain=_plain_shift, takes=takes_product, bound=_bound, grows=True),
    }
)
