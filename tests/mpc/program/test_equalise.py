"""Small values are raised by powers of two, and the result stays the same."""

from __future__ import annotations

import torch
from torch import nn

from splitsec.cut import trace
from splitsec.mpc.program.bounds import evaluate
from splitsec.mpc.program.equalise import equalise, powers_of, raw_bounds
from splitsec.mpc.program.lowering import lower_tail
from splitsec.mpc.program.shapes import ShapeNotes

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def _lowered(scale: float):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        layers[0].weight.mul_(scale)
        layers[0].bias.mul_(scale)
        layers[2].weight.mul_(1 / scale)
    tail = trace(layers.eval())
    with torch.no_grad():
        ShapeNotes(tail).run(X)
    return lower_tail(tail, (5, 4), 16)


def test_values_that_are_small_all_over_are_raised_and_the_output_is_not() -> None:
    lowering = _lowered(1e-4)
    largest = [value.abs().max().item() for value in evaluate(lowering.steps, lowering.weights, X)]
    powers = powers_of(lowering.steps, largest, small=0.25, aim=0.25)
    assert powers[0] == powers[-1] == 0
    # The ReLU and the layer before it go together, since a ReLU knows no scale.
    assert powers[1] == powers[2] > 0
    before = evaluate(lowering.steps, lowering.weights, X)
    equalise(lowering.steps, lowering.weights, powers)
    after = evaluate(lowering.steps, lowering.weights, X)
    torch.testing.assert_close(after[-1], before[-1])
    assert after[1].abs().max() > 100 * before[1].abs().max()


def test_values_with_digits_enough_are_left_alone() -> None:
    lowering = _lowered(1.0)
    largest = [value.abs().max().item() for value in evaluate(lowering.steps, lowering.weights, X)]
    assert not any(powers_of(lowering.steps, largest, small=0.01, aim=0.01))


def test_bounds_are_above_every_value() -> None:
    lowering = _lowered(1.0)
    bounds = raw_bounds(lowering.steps, lowering.weights, X.abs().max().item())
    values = evaluate(lowering.steps, lowering.weights, X)
    assert all(value.abs().max() <= bound + 1e-6 for value, bound in zip(values, bounds, strict=True))
