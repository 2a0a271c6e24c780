"""Bounds of every value: guaranteed by the weights, or measured."""

from __future__ import annotations

import pytest
import torch
from support.encrypted_tail import compiled
from torch import nn

from splitsec.cut import trace
from splitsec.errors import RangeError
from splitsec.mpc.program.bounds import Memory, batches, evaluate, largest_value

torch.manual_seed(0)
TAIL = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
GENERATOR = torch.Generator().manual_seed(1)


def test_no_input_below_the_limit_leaves_a_bound() -> None:
    program, weights = compiled(trace(TAIL), (50, 4))
    x = (torch.rand(50, 4, generator=GENERATOR) * 2 - 1) * program.limit
    values = evaluate(program.steps, weights, x)
    for step, value in zip(program.steps, values, strict=False):
        assert value.abs().max() < 2.0**step.bits, step.name
    assert program.guaranteed


def test_weights_that_would_overflow_are_refused_by_their_layer() -> None:
    huge = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        huge[1].weight.fill_(1e30)
    with pytest.raises(RangeError, match="'1'"):
        compiled(trace(huge), (1, 4))


def test_a_calibration_is_taken_in_batches_of_the_rows_that_are_compiled_for() -> None:
    parts = list(batches(torch.arange(10.0).view(5, 2), 2))
    assert all(part.shape == (2, 2) for part in parts)
    assert set(torch.cat(parts).flatten().tolist()) == set(map(float, range(10)))


def test_what_another_tail_has_measured_is_not_measured_again() -> None:
    memory, x = Memory(), torch.randn(3, 4, generator=GENERATOR)
    whole, weights = compiled(trace(TAIL), (3, 4))
    first = memory.largest(whole.steps, weights, x)
    assert memory.largest(whole.steps, weights, x) == first
    assert first[0] == pytest.approx(x.abs().max().item())


def test_the_ring_has_less_room_for_more_fractional_bits() -> None:
    assert largest_value(16) > largest_value(20)
