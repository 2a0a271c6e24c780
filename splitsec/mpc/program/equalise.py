"""Values that are small all over a network are raised by powers of two, so that fixed point keeps their digits.

Scaling one layer's weights up and the next one's down changes nothing in real numbers, since what lies between is
positively homogeneous: f(2x) = 2 f(x). Cross-layer equalisation: M. Nagel et al., "Data-free quantization through
weight equalization and bias correction", ICCV 2019, section 4.1; here a whole value at a time, and by powers of two,
which are exact. Epsilons and the ends of clips are scaled along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from splitsec.mpc.program.operations import OPERATIONS, Size
from splitsec.mpc.program.program import LARGEST_CONSTANT, Step, Weights

_MOST_POWER = 40
# What a layer with weights of its own, or a factor, makes may be raised by another power than what it takes.
_ABSORBING = ("linear", "conv2d", "scale", "affine")
# f(cx) = c f(x), or so with constants that are scaled along.
_HOMOGENEOUS = (
    *("relu", "leaky_relu", "hardtanh", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "add", "sum", "shift"),
    *("reshape", "permute", "index", "gather", "pad", "expand", "cat"),
)


def raw_bounds(steps: Sequence[Step], weights: Mapping[int, Weights], limit: float) -> list[float]:
    """How large every value can get for inputs up to `limit`, by the weights as they are; infinite where unknown."""
    limits = [limit]
    for number, step in enumerate(steps, 1):
        layer = weights.get(number)
        size = None
        if layer is not None:
            most = layer.weight.detach().double().abs()
            norm = most.flatten(1).sum(1).max() if step.op in ("linear", "conv2d") else most.max()
            size = Size(norm.item(), layer.bias.detach().abs().max().item())
        before = [limits[index] for index in step.inputs]
        known = all(map(math.isfinite, before))
        limits.append(OPERATIONS.get(step.op).bound(step, before, size) if known else math.inf)
    return limits


def powers_of(steps: Sequence[Step], largest: Sequence[float], *, small: float, aim: float) -> list[int]:
    """By which power of two each value is to be raised, the input's first: 0 for all that have digits enough.

    Args:
        largest: magnitudes of the values, the input's first.
        small: values that stay below this are raised. Others have digits enough, and their comparisons stay narrow.
        aim: the magnitude that small values are raised to, at most.
    """
    groups, pinned = _Groups(len(steps) + 1), {0, len(steps)}
    for number, step in enumerate(steps, 1):
        if step.op in _HOMOGENEOUS:
            groups.join(number, step.inputs)
        elif step.op == "standardise":
            pinned.add(number)
        elif step.op not in _ABSORBING:
            pinned.update((number, *step.inputs))
    most: dict[int, float] = {}
    for value, magnitude in enumerate(largest):
        most[groups.root(value)] = max(most.get(groups.root(value), 0.0), magnitude)
    while True:
        fixed = {groups.root(value) for value in pinned}
        roots = [groups.root(value) for value in range(len(steps) + 1)]
        powers = [0 if root in fixed else _power(most[root], small, aim) for root in roots]
        beyond = [number for number, step in enumerate(steps, 1) if not _constants_fit(raised(step, number, powers))]
        if not beyond:
            return powers
        for number in beyond:
            pinned.update((number, *steps[number - 1].inputs))


class _Groups:
    """Values that are raised by the same power: sets that are joined, each with a root."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, value: int) -> int:
        while self._parents[value] != value:
            value = self._parents[value]
        return value

    def join(self, value: int, others: Sequence[int]) -> None:
        for other in others:
            self._parents[self.root(other)] = self.root(value)


def _constants_fit(step: Step) -> bool:
    return max(map(abs, (step.factor, step.offset, step.low, step.high))) < LARGEST_CONSTANT


def _power(largest: float, small: float, aim: float) -> int:
    if not 0 < largest < small:
        return 0
    return min(_MOST_POWER, math.floor(math.log2(aim / largest)))


def equalise(steps: list[Step], weights: dict[int, Weights], powers: Sequence[int]) -> None:
    """Raise every value k of the steps by `powers[k]`, in place."""
    if not any(powers):
        return
    for number, step in enumerate(steps, 1):
        before, after = powers[step.inputs[0]], powers[number]
        if number in weights:
            layer = weights[number]
            # What is added only has no weight to scale: its input is raised as it is.
            weight = layer.weight if step.op == "shift" else layer.weight.double() * 2.0 ** (after - before)
            weights[number] = Weights(weight, layer.bias.double() * 2.0**after)
        steps[number - 1] = raised(step, number, powers)


def raised(step: Step, number: int, powers: Sequence[int]) -> Step:
    """Step `number` with its public constants for values that are raised by these powers."""
    before, after = powers[step.inputs[0]], powers[number]
    if step.op == "affine":
        factor, offset = step.factor * 2.0 ** (after - before), step.offset * 2.0**after
        return msgspec.structs.replace(step, factor=factor, offset=offset)
    if step.op == "hardtanh":
        return msgspec.structs.replace(step, low=step.low * 2.0**after, high=step.high * 2.0**after)
    if step.op == "standardise":
        return msgspec.structs.replace(step, low=step.low * 4.0**before)
    return step
