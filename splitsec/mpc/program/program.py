"""A tail as a program on shares: what both parties run in step, without the weights.

The server compiles its tail for one input shape (see `compiler`) and sends the program to the client; the weights stay
with the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import msgspec
import torch

from splitsec.mpc.protocols.broken_lines import Curve
from splitsec.mpc.ring import PRECISION_BITS
from splitsec.transport.fields import MAX_DIMENSIONS

MAX_STEPS = 10_000
Shape: TypeAlias = Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
Engine: TypeAlias = Literal["splitsec", "crypten"]
Reveal: TypeAlias = Literal["logits", "label"]
MOST_DIGITS = 14
# Fractional bits of a result that are opened, at most.
MOST_ANSWER_BITS = 40
# Constants are scaled to the fractional bits of products, and must then be far from the ring's end.
LARGEST_CONSTANT = 2.0**26


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation. Inputs are numbers of earlier values: 0 is the program's input, k the output of step k.

    `name` is the layer's own name, for messages; shapes include the batch dimension. `bits` bounds the inputs: their
    magnitude is below 2**bits. `zero` makes max pooling the ReLU of the maximum; average pooling divides by `divisor`
    if there is one, else by a window's elements, what is `padded` included or not, and `ceil` is torch's `ceil_mode`.
    `slope` is leaky ReLU's, `low` and `high` hardtanh's, `factor` and `offset` those of an affine step, `dim` softmax's
    and concatenation's, `curves` the broken lines of a function. `index` is the order of a permutation, the start, stop
    and step of every dimension of a slice, or which elements are gathered. `digits` are fractional bits that a layer's
    weights have beyond the working precision. Weights that no party of a session knows have an `owner`, at which they
    were those of step `source`, and a `bias` of this shape, see `shared`. Of `argmax`, which can only be the last
    step, the value is [z is the largest] of each class, and the client takes the first.
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
    factor: float = 1.0
    offset: float = 0.0
    dim: int = -1
    index: tuple[int, ...] = ()
    ceil: bool = False
    padded: bool = True
    divisor: int = 0
    digits: int = 0
    owner: str = ""
    source: int = 0
    bias: Shape = ()
    curves: tuple[Curve, ...] = ()


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The magnitude of value `value` is to be below 2**bits; see `run.check_ranges`."""

    value: int
    bits: int


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tail's architecture for one input shape.

    `limit` bounds the input so that no layer can overflow, and `limited_by` is the layer that asks for it, if one does.

    `guaranteed` says that no activation below the limit can make any value overflow: bounds were computed from the
    weights, not measured. `checks` are those of the checked mode, `comparison` is how values are compared. Of the
    result `answer_bits` fractional bits are opened, and below them noise (see `run.blurred`).
    Of activations that are smaller than `least` all over, fixed point keeps too few digits, see `resolving`.
    """

    input_shape: Shape
    steps: Annotated[tuple[Step, ...], msgspec.Meta(max_length=MAX_STEPS)]
    limit: float
    limited_by: str
    precision: int = PRECISION_BITS
    checks: tuple[Check, ...] = ()
    comparison: str = "tables"
    guaranteed: bool = True
    answer_bits: int = PRECISION_BITS
    least: float = 0.0

    @property
    def reveals_label(self) -> bool:
        """Return whether the client gets a label a sample and nothing else."""
        return bool(self.steps) and self.steps[-1].op == "argmax"

    @property
    def output_shape(self) -> Shape:
        """Return the shape of the result of `run_program`."""
        shape = self.steps[-1].shape if self.steps else self.input_shape
        return shape[:1] if self.reveals_label else shape


@dataclass(frozen=True)
class Weights:
    """Weight and bias of one step; only the server has them.

    Real numbers of any dtype as they are compiled; int64 in the ring once `encode_weights` has scaled them, the bias
    then with the product's fractional bits and in a shape that broadcasts over the output.
    """

    weight: torch.Tensor
    bias: torch.Tensor
