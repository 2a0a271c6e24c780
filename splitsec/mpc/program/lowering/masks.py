"""Lowering choices by masks that are constants of the server's."""

from __future__ import annotations

from typing import Any

import torch

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.advice import ADVICE
from splitsec.mpc.program.lowering.base import LOWERINGS, MASKED, Call, Lowering, Shared, Tables


def _masked_fill(lowering: Lowering, call: Call) -> Shared:
    """Return a constant mask's elements replaced by a number."""
    options = call.options(f"{'input' if callable(call.target) else 'self'} mask value")
    x, mask, value = call.first, options["mask"], options["value"]
    if not isinstance(mask, torch.Tensor) or isinstance(value, Shared):
        raise UnsupportedLayerError(f"'{call.name}' has a mask that depends on the input; no encrypted form for that")
    return _chosen(lowering, call, mask, float(value), x)


def _where(lowering: Lowering, call: Call) -> Shared:
    """One value or number where a constant mask is true, another elsewhere."""
    options = call.options(f"{'condition' if callable(call.target) else 'self'} input other")
    if not callable(call.target):
        options = {"condition": options["input"], "input": options["self"], "other": options["other"]}
    mask, yes, no = options["condition"], options["input"], options["other"]
    if not isinstance(mask, torch.Tensor):
        raise UnsupportedLayerError(f"'{call.name}' chooses by a value on shares: {ADVICE['where']}")
    if isinstance(yes, Shared) and isinstance(no, Shared):
        first, second = _chosen(lowering, call, ~mask, 0.0, yes), _chosen(lowering, call, mask, 0.0, no)
        return lowering.emit("add", call.name, (first, second), lowering.shape_of(call))
    return _chosen(lowering, call, mask, yes, no) if isinstance(no, Shared) else _chosen(lowering, call, ~mask, no, yes)


def _chosen(lowering: Lowering, call: Call, mask: torch.Tensor, value: Any, x: Shared) -> Shared:
    """`value`, a number or constant, where the mask is true, else x."""
    shape, mask = lowering.shape_of(call), mask.double()
    x = lowering.expand(call.name, x, shape)
    number = torch.as_tensor(value).detach().double().clamp(min=MASKED)
    if number.dim() == 0 and number.item() <= MASKED:
        # A mask of attention: so far down that what was there does not matter.
        return lowering.emit_weights("shift", call.name, x, shape, torch.ones(1), mask * MASKED)
    factor, offset = torch.broadcast_tensors(1 - mask, mask * number)
    return lowering.emit_weights("scale", call.name, x, shape, factor.contiguous(), offset.contiguous())


LOWERINGS.register("masks")(
    Tables(
        {},
        {torch.masked_fill: _masked_fill, torch.where: _where},
        {"masked_fill": _masked_fill, "masked_fill_": _masked_fill, "where": _where},
    )
)
