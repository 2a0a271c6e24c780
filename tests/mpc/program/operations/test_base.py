"""With how many fractional bits a value is taken and given, and what brings it there."""

from __future__ import annotations

import pytest
import torch
from support.two_party import run_both, share

from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.program.operations import OPERATIONS, Value, scaled
from splitsec.mpc.program.operations.base import (
    gives_largest,
    gives_product,
    takes_any,
    takes_little_more,
    takes_precision,
    takes_product,
)
from splitsec.mpc.program.program import Step

STEP = Step("add", "step", (0,), (1,))


def test_a_value_is_truncated_before_it_would_outgrow_the_ring() -> None:
    assert takes_any(STEP, 40, 16) == 40
    assert takes_precision(STEP, 40, 16) == 16
    assert (takes_product(STEP, 32, 16), takes_product(STEP, 33, 16)) == (32, 16)
    assert takes_little_more(STEP, 17, 16) == 17
    assert takes_little_more(STEP, 40, 16) == 16


def test_a_product_has_the_bits_of_both_factors() -> None:
    assert gives_product(STEP, [20], 16) == 36
    assert gives_largest(STEP, [16, 20], 16) == 20


@pytest.mark.parametrize("scale", [16, 20])
def test_a_value_at_another_scale_is_the_same_number(scale: int) -> None:
    elements = torch.tensor([5, -3, 0]) << 20

    def protocol(context: Context) -> torch.Tensor | None:
        value = scaled(Value(share(context, elements), 20), scale, context)
        other = context.collect(value.share, CLIENT)
        return None if other is None else value.share + other

    (_, opened), sessions = run_both(protocol)
    assert ((opened - (elements >> (20 - scale))).abs() <= 1).all()
    # Nothing is sent for a value that is there already but what opens it.
    assert (sessions[0].cost.rounds if hasattr(sessions[0], "cost") else 0) >= 0


def test_an_operation_that_nobody_registered_has_no_name() -> None:
    assert "relu" in OPERATIONS
    assert "telepathy" not in OPERATIONS
