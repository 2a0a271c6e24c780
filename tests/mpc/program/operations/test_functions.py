"""Functions on shares: broken lines, probabilities, standardised rows."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_shared, run_plain

from splitsec.mpc.program.program import Curve
from splitsec.mpc.protocols.broken_lines import curve_of, logarithm

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
# |x| beyond -1 and 1, and flat between.
CURVE = Curve(knots=(-1.0, 1.0), slopes=(-1.0, 0.0, 1.0), start=1.0)


def test_a_broken_line_bends_at_its_knots() -> None:
    expect_shared("curve", X * 2, curves=(CURVE,), off=2.0**-12)


@pytest.mark.parametrize(("op", "curves"), [("softmax", ()), ("log_softmax", (logarithm(7),))])
def test_probabilities_are_those_of_torch(op: str, curves: tuple[Curve, ...]) -> None:
    expect_shared(op, X, dim=-1, curves=(curve_of("exp"), *curves), off=2e-3)


def test_standardised_rows_have_mean_zero_and_deviation_one() -> None:
    expect_shared("standardise", X, low=1e-5, off=2e-3)
    plain = run_plain("standardise", X, low=1e-5)
    assert plain.mean(-1).abs().max() < 1e-6
    assert (plain.std(-1, unbiased=False) - 1).abs().max() < 1e-3
