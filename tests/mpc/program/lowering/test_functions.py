"""Functions of real numbers: exponentials, logarithms, roots, reciprocals, quotients, lengths, waves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.plain_tail import expect_same, lowered

from splitsec.errors import UnsupportedLayerError

X = torch.linspace(-3, 3, 24).view(2, 3, 4) + 0.1
ABOVE = torch.linspace(0.05, 30, 24).view(2, 3, 4)
Function = Callable[[torch.Tensor], torch.Tensor]


@pytest.mark.parametrize(
    ("function", "x", "off"),
    [
        (torch.exp, X, 3e-3),
        (torch.expm1, X, 3e-3),
        (torch.erf, X, 2e-3),
        (torch.sqrt, ABOVE, 1e-5),
        (torch.rsqrt, ABOVE, 1e-5),
        (torch.reciprocal, X, 1e-5),
        (torch.log, ABOVE, 1e-3),
        (torch.log1p, ABOVE, 1e-3),
        (torch.log2, ABOVE, 2e-3),
        (torch.log10, ABOVE, 1e-3),
        (torch.sin, 4 * X, 4e-3),
        (torch.cos, 4 * X, 4e-3),
        (lambda x: 1 / (x * x + 1), X, 1e-5),
        (lambda x: x / x.sum(-1, keepdim=True), ABOVE, 1e-5),
        (lambda x: torch.div(x, 4.0), X, 1e-5),
        (lambda x: torch.ones(4) * 2 / x, ABOVE, 1e-5),
        (lambda x: x**4, X, 1e-5),
        (lambda x: x**0.5 + x**-1 + x**-0.5 + x**1.5 + x**-2, ABOVE, 1e-4),
        (lambda x: F.normalize(x, dim=-1), X, 1e-5),
        (lambda x: F.normalize(x, p=1.0, dim=1), X, 1e-5),
        (lambda x: F.normalize(x, dim=-1, eps=3.0), X, 1e-5),
        (lambda x: x.norm(dim=-1, keepdim=True) * x, X, 1e-5),
        (lambda x: torch.linalg.vector_norm(x, 1, dim=(1, 2)), X, 1e-5),
        (lambda x: x.var(-1) + x.std(-1), X, 1e-5),
        (lambda x: torch.var(x, dim=(1, 2), unbiased=False, keepdim=True), X, 1e-5),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5), X, 1e-5),
    ],
)
def test_a_function_is_what_torch_says(function: Function, x: torch.Tensor, off: float) -> None:
    expect_same(function, x, off=off)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x**2.25, "whole powers and halves up to 8"),
        (lambda x: torch.div(x, x, rounding_mode="floor"), "rounds its quotient"),
        (lambda x: torch.linalg.vector_norm(x, 3, dim=-1), "a norm of order 3"),
        (lambda x: x / x.norm(), "joins the samples of a batch"),
        (lambda x: x / x.std(True), "joins the samples of a batch"),
        (lambda x: x * torch.linalg.norm(x, dim=(1, 2), keepdim=True), "may be a norm of matrices"),
        (lambda x: F.normalize(x, p=1.0, dim=1, eps=1.0), "an eps of 1"),
    ],
)
def test_what_remains_refused_says_why(function: Function, reason: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=reason):
        lowered(function, X)
