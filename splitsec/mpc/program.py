"""A tail as a program on shares: what both parties run in step, without the weights.

The server compiles its tail for one input shape (see `compiler`) and sends the program to the client; the weights stay
with the server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
import torch

from splitsec.errors import MessageError
from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.ring import HEADROOM_BITS, PRECISION_BITS

Shape: TypeAlias = tuple[int, ...]
Reveal: TypeAlias = Literal["logits", "label"]
# Functions that run through CrypTen's approximations.
CRYPTEN_OPS = ("sigmoid", "tanh", "softmax", "exp")
OPS = (
    "linear",
    "conv2d",
    "relu",
    "leaky_relu",
    "hardtanh",
    "max_pool2d",
    "avg_pool2d",
    "add",
    "cat",
    "reshape",
    "argmax",
    *CRYPTEN_OPS,
)
MAX_STEPS = 10_000
FREE_BITS = 6


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation. Inputs are numbers of earlier values: 0 is the program's input, k the output of step k.

    `name` is the layer's own name, for messages; shapes include the batch dimension. `bits` bounds the inputs: their
    magnitude is below 2**bits. `zero` makes max pooling the ReLU of the maximum;
    `slope` is leaky ReLU's, `low` and `high` hardtanh's, `dim` softmax's and concatenation's. Of `argmax`, which can
    only be the last step, the value is [z is the largest] of each class, and the client takes the first.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    shape: Shape
    weight: Shape = ()
    kernel: Shape = ()
    stride: Shape = (1, 1)
    padding: Shape = (0, 0)
    dilation: Shape = (1, 1)
    groups: int = 1
    bits: int = 0
    zero: bool = False
    slope: float = 0.0
    low: float = 0.0
    high: float = 0.0
    dim: int = -1


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The magnitude of value `value` is to be below 2**bits; see `run.check_ranges`."""

    value: int
    bits: int


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tail's architecture for one input shape. `limit` bounds the input so that no layer can overflow, and
    `limited_by` is the layer that asks for it, if one does.

    `checks` are those of the checked mode, `comparison` is how values are compared.
    """

    input_shape: Shape
    steps: tuple[Step, ...]
    limit: float
    limited_by: str
    precision: int = PRECISION_BITS
    checks: tuple[Check, ...] = ()
    comparison: ComparisonKind = "tables"

    @property
    def reveals_label(self) -> bool:
        """Whether the client gets a label a sample and nothing else."""
        return bool(self.steps) and self.steps[-1].op == "argmax"

    @property
    def output_shape(self) -> Shape:
        """Shape of what `run_program` returns."""
        shape = self.steps[-1].shape if self.steps else self.input_shape
        return shape[:1] if self.reveals_label else shape


@dataclass(frozen=True)
class Weights:
    """Weight and bias of one step; only the server has them.

    float64 as they are compiled; int64 in the ring once `encode_weights` has scaled them, the bias then with the
    product's fractional bits and in a shape that broadcasts over the output.
    """

    weight: torch.Tensor
    bias: torch.Tensor


def input_scale(step: Step, scale: int, precision: int) -> int:
    """The fractional bits with which a step takes an input of `scale`: less than that if it truncates first."""
    if step.op in ("linear", "conv2d"):
        # A few bits more than the working precision, as averages leave them, cost nothing.
        return scale if scale <= precision + FREE_BITS else precision
    if step.op in ("add", "cat"):
        return scale if scale <= 2 * precision else precision
    if step.op in ("relu", "leaky_relu", "hardtanh", "max_pool2d", "reshape", "argmax"):
        return scale
    if step.op == "avg_pool2d":
        return scale if scale <= 2 * precision and _power_of_two(step) else precision
    return precision


def output_scale(step: Step, scales: Sequence[int], precision: int) -> int:
    """The fractional bits of a step's output, from those of its inputs as it takes them."""
    if step.op in ("linear", "conv2d"):
        return scales[0] + precision
    if step.op in ("add", "cat", "reshape"):
        return max(scales)
    if step.op == "argmax":
        return 0
    if step.op == "leaky_relu":
        return 2 * precision
    if step.op == "avg_pool2d":
        extra = (math.prod(step.kernel) - 1).bit_length()
        return scales[0] + extra if _power_of_two(step) else scales[0] + precision + extra
    return precision


def value_scales(steps: Sequence[Step], precision: int) -> list[int]:
    """The fractional bits of every value, the program's input first."""
    found = [precision]
    for step in steps:
        taken = [input_scale(step, found[index], precision) for index in step.inputs]
        found.append(output_scale(step, taken, precision))
    return found


def _power_of_two(step: Step) -> bool:
    count = math.prod(step.kernel)
    return count & (count - 1) == 0


def check_program(program: Program) -> None:
    """Raise `MessageError` for a program that no compiler makes: what a client checks before it runs one."""
    if not 0 < program.precision < 31 or not program.limit > 0 or len(program.steps) > MAX_STEPS:
        raise MessageError("an impossible program")
    shapes = [program.input_shape]
    for number, step in enumerate(program.steps, 1):
        if step.op not in OPS:
            raise MessageError(f"the program has an unknown operation '{step.op[:32]}'")
        if not step.inputs or any(not 0 <= index < number for index in step.inputs):
            raise MessageError(f"step {number} of the program reads a value that is not there")
        if not max(abs(step.slope), abs(step.low), abs(step.high)) < 2.0 ** (30 - program.precision):
            raise MessageError(f"step {number} of the program has an impossible constant")
        if not 0 <= step.bits <= HEADROOM_BITS - 2 * program.precision - 2:
            raise MessageError(f"step {number} of the program has an impossible bound")
        if any(size < 1 for size in (*step.shape, *step.weight)) or math.prod(step.shape) > 1 << 26:
            raise MessageError(f"step {number} of the program has an impossible shape")
        if step.op == "argmax" and (number < len(program.steps) or len(step.shape) != 2):
            raise MessageError("only the last step of a program may take a label, of two dimensions")
        shapes.append(step.shape)
    for check in program.checks:
        if not 0 <= check.value < len(shapes) or not 0 <= check.bits < HEADROOM_BITS - program.precision:
            raise MessageError("the program checks a value that is not there")
