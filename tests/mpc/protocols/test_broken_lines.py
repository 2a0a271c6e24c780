"""Broken lines: how close they are to their function, and what lies beyond their ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.plain_tail import expect_shared

from splitsec.mpc.protocols.broken_lines import curve_of, fit, logarithm

POINTS = torch.linspace(-12, 12, 4001, dtype=torch.float64)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "mish", "softplus", "elu"])
def test_a_known_function_is_met_to_a_thousandth(name: str) -> None:
    function = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}.get(name) or getattr(torch.nn.functional, name)
    assert (curve_of(name)(POINTS) - function(POINTS)).abs().max() < 1.2e-3


def test_the_logarithm_is_met_as_far_as_it_is_asked_for() -> None:
    x = torch.linspace(1, 100, 2001, dtype=torch.float64)
    assert (logarithm(100)(x) - x.log()).abs().max() < 5e-3


def test_a_line_goes_on_with_its_outer_slopes() -> None:
    fine = np.linspace(-1, 1, 501)
    curve = fit(fine, np.abs(fine), -1.0, 1.0, 9)
    far = torch.tensor([-10.0, 10.0], dtype=torch.float64)
    assert (curve(far) - far.abs()).abs().max() < 1e-6
    assert len(curve.slopes) == len(curve.knots) + 1


def test_on_shares_it_is_the_same_line() -> None:
    x = torch.linspace(-6, 6, 41)
    expect_shared("curve", x, curves=(curve_of("sigmoid"),), off=2e-4)
