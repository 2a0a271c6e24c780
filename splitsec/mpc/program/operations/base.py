"""What an operation of a program is: how it runs on shares and in plain, what it needs and how large it can get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.program.program import Step, Weights
from splitsec.mpc.protocols.truncate import truncate
from splitsec.registry import Registry

# A few fractional bits more than the working precision, as averages leave them, cost a product nothing.
FREE_BITS = 6


@dataclass(frozen=True)
class Value:
    """A party's share of a tensor with `scale` fractional bits: the working precision, or more after a product."""

    share: torch.Tensor
    scale: int


@dataclass(frozen=True)
class Running:
    """One step at one party: its inputs at the scales that it takes, and the scale that it must return."""

    number: int
    step: Step
    inputs: Sequence[Value]
    weights: Weights | None
    context: Context
    scale: int

    @property
    def first(self) -> Value:
        """Return the first input."""
        return self.inputs[0]

    @property
    def serves(self) -> bool:
        """Return whether this party adds the values that both know."""
        return self.context.rank == SERVER


@dataclass(frozen=True)
class Size:
    """Of a step's weights: how many times larger than its input a layer's output can get, and the largest bias."""

    norm: float
    bias: float


Plain: TypeAlias = Callable[[Step, Sequence[torch.Tensor], Weights | None], torch.Tensor]


def takes_any(_step: Step, scale: int, _precision: int) -> int:
    """Whatever comes."""
    return scale


def takes_precision(_step: Step, _scale: int, precision: int) -> int:
    """Return the working precision, so that a truncation comes first if there is more."""
    return precision


def takes_little_more(_step: Step, scale: int, precision: int) -> int:
    """Return the working precision or a few bits more."""
    return scale if scale <= precision + FREE_BITS else precision


def takes_product(_step: Step, scale: int, precision: int) -> int:
    """At most what a product leaves."""
    return scale if scale <= 2 * precision else precision


def gives_largest(_step: Step, scales: Sequence[int], _precision: int) -> int:
    """Return the largest of the inputs' scales."""
    return max(scales)


def gives_precision(_step: Step, _scales: Sequence[int], precision: int) -> int:
    """Return the working precision."""
    return precision


def gives_product(_step: Step, scales: Sequence[int], precision: int) -> int:
    """Return what the product of the first input with a constant of the working precision has."""
    return scales[0] + precision


def bound_of_inputs(_step: Step, bounds: Sequence[float], _size: Size | None) -> float:
    """As large as the largest input."""
    return max(bounds)


def no_room(_step: Step) -> float:
    """Nothing on the way is larger than the result."""
    return 1.0


def largest_input(_step: Step, bounds: Sequence[float]) -> float:
    """Comparisons see the inputs as they are."""
    return max(bounds)


@dataclass(frozen=True)
class Operation:
    """One kind of step.

    Attributes:
        run: on shares, at one party; returns its share of the result with `Running.scale` fractional bits.
        plain: the same in torch, float64.
        takes: the fractional bits with which it takes an input of that many: less if it is to be truncated first.
        gives: the fractional bits of the result, from those of the inputs as taken.
        bound: the result's largest magnitude from the inputs'; infinite if something on the way would overflow.
        room: how many times larger than the result a value on the way can be.
        inside: the largest magnitude that its comparisons see.
        grows: whether a result can be larger than the inputs, so that the checked mode must look.
        compares: whether it is wrong for inputs beyond their bounds, though they are within the ring.
    """

    run: Callable[[Running], torch.Tensor]
    plain: Plain
    takes: Callable[[Step, int, int], int] = takes_any
    gives: Callable[[Step, Sequence[int], int], int] = gives_largest
    bound: Callable[[Step, Sequence[float], Size | None], float] = bound_of_inputs
    room: Callable[[Step], float] = field(default=no_room)
    inside: Callable[[Step, Sequence[float]], float] = largest_input
    grows: bool = False
    compares: bool = False


# By the name that a step has (`Step.op`).
OPERATIONS: Registry[Operation] = Registry("operation", package="splitsec.mpc.program.operations")


def scaled(x: Value, scale: int, context: Context) -> Value:
    """Return the value with `scale` fractional bits, not more than it has; one round if fewer."""
    if x.scale == scale:
        return x
    return Value(truncate(context, x.share, x.scale - scale), scale)
