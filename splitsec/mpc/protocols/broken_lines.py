"""Functions of one variable as broken lines, on shares: every knot is one ReLU, all of them at once.

A broken line is f(x) = y0 + s0 (x - t0) + sum of (s_i - s_(i-1)) relu(x - t_i) over its knots t_i, exact up to the
rounding of its slopes, since the ReLUs are taken without truncation. Splines by parallel comparisons with a dealer:
E. Boyle et al., "Function secret sharing for mixed-mode and fixed-point secure computation", EUROCRYPT 2021, section 5.
The knots of a function lie where it bends, as in X. Fan et al., "NFGen", CCS 2022, section 4, but of first order: one
comparison and no products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import msgspec
import numpy as np
import torch

from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.protocols.relu import relu
from splitsec.mpc.ring import PRECISION_BITS

_FINE = 4_001
# Ends of lines that differ by less are the same.
_SAME = 1e-4


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A broken line: the value at the first knot, the knots, and the slopes before, between and after them."""

    start: float
    knots: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def heights(self) -> list[float]:
        """Return the values at the knots."""
        heights = [self.start]
        for low, high, slope in zip(self.knots, self.knots[1:], self.slopes[1:], strict=False):
            heights.append(heights[-1] + slope * (high - low))
        return heights

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values at x, in clear."""
        values = self.start + self.slopes[0] * (x - self.knots[0])
        for knot, before, after in zip(self.knots, self.slopes, self.slopes[1:], strict=False):
            values = values + (after - before) * (x - knot).relu()
        return values


def bend(context: Context, share: torch.Tensor, curve: Curve, *, scale: int, digits: int, high: int) -> torch.Tensor:
    """Return shares of the curve's values with `scale + digits` fractional bits.

    Args:
        share: int64 of any shape, a share of x with `scale` fractional bits.
        digits: fractional bits of the slopes.
        high: |x| and |x - t| as ring elements are below 2**high for all knots t.

    Returns:
        int64 of the same shape; rounds as for one ReLU.
    """
    knots = torch.tensor(curve.knots, dtype=torch.float64).mul(2.0**scale).round().to(torch.int64)
    slopes = torch.tensor(curve.slopes, dtype=torch.float64).mul(2.0**digits).round().to(torch.int64)
    knots = knots.view(-1, *[1] * share.dim())
    moved = share[None] - knots if context.rank == SERVER else share[None].expand(len(knots), *share.shape)
    above = relu(context, moved, high=high)
    if context.planning:
        return torch.zeros_like(share)
    result = share * slopes[0]
    for part, step in zip(above, slopes[1:] - slopes[:-1], strict=True):
        result += part * step
    if context.rank == SERVER:
        result += round(curve.start * 2.0 ** (scale + digits)) - slopes[0] * knots.view(-1)[0]
    return result


@cache
def curve_of(name: str, parameter: float = 1.0) -> Curve:
    """Return the broken line of a known function; `parameter` is ELU's alpha, and softplus' beta."""
    function, low, high, left, right, knots = _FUNCTIONS[name]
    if name == "log":
        # Its octaves are all alike, and the smallest are so steep that knots must be fixed-point numbers.
        fine = np.geomspace(low(parameter), high(parameter), _FINE)
        return fit(fine, function(fine, parameter), left, right, knots, grid=2.0**-PRECISION_BITS)
    fine = np.linspace(low(parameter), high(parameter), _FINE)
    return fit(fine, function(fine, parameter), left, right, knots)


def domain_of(name: str) -> tuple[float, float]:
    """Return the ends between which a function's broken line is the function; both 0 where it is everywhere."""
    return _DOMAINS.get(name, (0.0, 0.0))


def name_of(curve: Curve) -> str:
    """Return the name of the function, with its usual parameter, that a broken line is; empty for others."""
    for name, (_, low, high, left, right, _) in _FUNCTIONS.items():
        ends = (low(1.0), high(1.0), left, right)
        line = (curve.knots[0], curve.knots[-1], curve.slopes[0], curve.slopes[-1])
        if all(abs(end - other) < _SAME for end, other in zip(ends, line, strict=True)):
            return name
    return ""


@cache
def logarithm(most: int) -> Curve:
    """Return the broken line of the natural logarithm from 1 to `most`."""
    fine = np.geomspace(0.9, most, _FINE)
    return fit(fine, np.log(fine), 1.0, 0.0, 64)


def fit(
    fine: np.ndarray, values: np.ndarray, left: float, right: float, knots: int, *, grid: float | None = None
) -> Curve:
    """Fit a broken line to the points (`fine`, `values`), with slopes `left` and `right` outside them.

    Between knots where the function bends equally (the integral of the root of its second derivative), the largest
    error of all pieces is about the same. The best of a few powers of it is taken, since pieces are not short.

    Args:
        grid: of which the knots are multiples; None for any.
    """
    second = np.gradient(np.gradient(values, fine), fine)
    lines = [
        _line(fine, values, np.abs(second) ** power + least, left, right, knots, grid)
        for power in (0.35, 0.4, 0.45, 0.5)
        for least in (0.0, 1e-3, 1e-2, 3e-2)
    ]
    return min(lines, key=lambda line: np.abs(np.interp(fine, line.knots, line.heights) - values).max())


def _line(
    fine: np.ndarray,
    values: np.ndarray,
    weight: np.ndarray,
    left: float,
    right: float,
    knots: int,
    grid: float | None,
) -> Curve:
    # By what lies between the points, which need not be spaced evenly.
    grown = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2 * np.diff(fine))])
    places = np.interp(np.linspace(0, grown[-1], knots), grown, fine)
    if grid is not None:
        places = np.unique(np.round(places / grid) * grid)
        knots = len(places)
    # Heights by least squares, but at the ends, where the line meets what the function is outside.
    at = np.clip(np.searchsorted(places, fine) - 1, 0, knots - 2)
    share = (fine - places[at]) / (places[at + 1] - places[at])
    basis = np.zeros((len(fine), knots))
    rows = np.arange(len(fine))
    basis[rows, at] = 1 - share
    basis[rows, at + 1] = share
    ends = np.array([values[0], values[-1]])
    inner = np.linalg.lstsq(basis[:, 1:-1], values - basis[:, [0, -1]] @ ends, rcond=None)[0]
    heights = np.concatenate([ends[:1], inner, ends[1:]])
    slopes = np.diff(heights) / np.diff(places)
    return Curve(float(heights[0]), tuple(places.tolist()), (left, *slopes.tolist(), right))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(value) for value in x])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * (1 + _erf(x / math.sqrt(2))) / 2)


def _softplus(x: np.ndarray, beta: float) -> np.ndarray:
    return np.logaddexp(0, beta * x) / beta


_End: TypeAlias = Callable[[float], float]
# Function, ends as functions of the parameter, the slopes outside them, and how many knots keep its error below 1e-3.
_FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], _End, _End, float, float, int]]
_FUNCTIONS = {
    "sigmoid": (lambda x, _: _sigmoid(x), lambda _: -9.0, lambda _: 9.0, 0.0, 0.0, 32),
    "tanh": (lambda x, _: np.tanh(x), lambda _: -4.8, lambda _: 4.8, 0.0, 0.0, 40),
    "gelu": (lambda x, _: _gelu(x), lambda _: -4.2, lambda _: 4.2, 0.0, 1.0, 32),
    "gelu_tanh": (
        lambda x, _: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        lambda _: -4.2,
        lambda _: 4.2,
        0.0,
        1.0,
        32,
    ),
    "silu": (lambda x, _: x * _sigmoid(x), lambda _: -11.0, lambda _: 11.0, 0.0, 1.0, 48),
    "mish": (lambda x, _: x * np.tanh(_softplus(x, 1.0)), lambda _: -11.0, lambda _: 9.0, 0.0, 1.0, 48),
    "softplus": (_softplus, lambda beta: -9.0 / beta, lambda beta: 9.0 / beta, 0.0, 1.0, 32),
    "elu": (lambda x, alpha: alpha * np.expm1(x), lambda _: -9.0, lambda _: 0.0, 0.0, 1.0, 32),
    "log": (lambda x, _: np.log(x), lambda _: 2.0**-12, lambda _: 2.0**10, 2.0**12, 0.0, 132),
    "sin": (lambda x, _: np.sin(x), lambda _: -16.0, lambda _: 16.0, 0.0, 0.0, 160),
    "cos": (lambda x, _: np.cos(x), lambda _: -16.0, lambda _: 16.0, 0.0, 0.0, 160),
    "erf": (lambda x, _: _erf(x), lambda _: -3.3, lambda _: 3.3, 0.0, 0.0, 48),
    # Up to exp(10), which the third square of the line is.
    "exp_eighth": (
        lambda x, _: np.exp(x / 8) * np.minimum(1, (x + 40) / 8),
        lambda _: -40.0,
        lambda _: 10.0,
        0.0,
        0.44,
        96,
    ),
    # The fourth root of the exponential, for softmax: zero at the far end, and beyond it.
    "exp": (lambda x, _: np.exp(x / 4) * np.minimum(1, (x + 24) / 4), lambda _: -24.0, lambda _: 0.0, 0.0, 0.0, 40),
}
# Where a line is its function, if not everywhere.
_DOMAINS = {
    "log": (-(2.0**10), 2.0**10),
    "sin": (-16.0, 16.0),
    "cos": (-16.0, 16.0),
    "exp_eighth": (-(2.0**20), 10.0),
}
