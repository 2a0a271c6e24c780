"""The operations of a program, by name: what each needs, and how it runs on shares and in plain."""

from __future__ import annotations

from collections.abc import Sequence

from splitsec.mpc.operations.arithmetic import ARITHMETIC
from splitsec.mpc.operations.base import Operation, Running, Size, Value, scaled
from splitsec.mpc.operations.functions import FUNCTIONS
from splitsec.mpc.operations.layers import LAYERS
from splitsec.mpc.operations.moving import MOVING
from splitsec.mpc.operations.pooling import POOLING
from splitsec.mpc.operations.selecting import SELECTING
from splitsec.mpc.program import Step

OPERATIONS: dict[str, Operation] = {**LAYERS, **SELECTING, **POOLING, **MOVING, **ARITHMETIC, **FUNCTIONS}

__all__ = ["OPERATIONS", "Operation", "Running", "Size", "Value", "scaled", "value_scales"]


def value_scales(steps: Sequence[Step], precision: int) -> list[int]:
    """The fractional bits of every value, the program's input first."""
    found = [precision]
    for step in steps:
        operation = OPERATIONS[step.op]
        taken = [operation.takes(step, found[index], precision) for index in step.inputs]
        found.append(operation.gives(step, taken, precision))
    return found
