"""The inverse square root on shares."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_shared, run_plain, run_shared

from splitsec.mpc.program.operations import OPERATIONS
from splitsec.mpc.program.program import Step


@pytest.mark.parametrize("least", [2.0**-16, 2.0**-8, 1.0])
def test_it_is_that_of_torch_to_a_part_in_a_thousand(least: float) -> None:
    x = torch.logspace(0, 1, 40).mul(max(least, 2.0**-8)).view(5, 8)
    shared, plain = run_shared("inverse_root", x, low=least).double(), run_plain("inverse_root", x, low=least)
    assert ((shared - plain) / plain).abs().max() < 1e-3


def test_it_holds_for_large_values_too() -> None:
    expect_shared("inverse_root", torch.linspace(1, 120, 24).view(3, 8), low=2.0**-16)


def test_below_the_least_value_it_stays_within_its_bound() -> None:
    step = Step("inverse_root", "step", (0,), (1, 3), low=2.0**-8)
    shared = run_shared("inverse_root", torch.tensor([[0.0, 2.0**-16, 2.0**-12]]), low=2.0**-8)
    assert shared.abs().max() <= OPERATIONS.get("inverse_root").bound(step, [1.0], None)


def test_no_bound_is_given_for_what_the_ring_does_not_hold() -> None:
    step = Step("inverse_root", "step", (0,), (1, 3), low=2.0**-8)
    assert OPERATIONS.get("inverse_root").bound(step, [2.0**30], None) == float("inf")
