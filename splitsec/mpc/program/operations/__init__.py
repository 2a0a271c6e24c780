"""The operations of a program, by name: what each needs, and how it runs on shares and in plain."""

from __future__ import annotations

from collections.abc import Sequence

from splitsec.mpc.program.operations.base import OPERATIONS, Operation, Running, Size, Value, scaled
from splitsec.mpc.program.program import Step

__all__ = ["OPERATIONS", "Operation", "Running", "Size", "Value", "scaled", "value_scales"]


def value_scales(steps: Sequence[Step], precision: int) -> list[int]:
    """Return the fractional bits of every value, the program's input first."""
    scales = [precision]
    for step in steps:
        operation = OPERATIONS.get(step.op)
        inputs = [operation.takes(step, scales[index], precision) for index in step.inputs]
        scales.append(operation.gives(step, inputs, precision))
    return scales
