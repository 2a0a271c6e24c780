"""Reciprocals, softmax and layer norm on shares.

Newton's method from a first guess, as in CrypTen (B. Knott et al., NeurIPS 2021, section 5): the guess of a reciprocal
is a broken line (see `broken_lines`), that of an inverse square root a staircase, with a comparison for each stair.
Guesses are made of quotients and square roots of whole numbers, which are the same on every machine.
"""

from __future__ import annotations

import math

import torch

from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.protocols.broken_lines import Curve, bend
from splitsec.mpc.protocols.maximum import largest
from splitsec.mpc.protocols.multiply import multiply, square
from splitsec.mpc.protocols.sign import at_least_zero
from splitsec.mpc.protocols.truncate import truncate
from splitsec.mpc.ring import HEADROOM_BITS

# Fractional bits of reciprocals and inverse roots, and those of sums of squares by which they are compared.
FINE_BITS = 24
SQUARES_BITS = 20
MOST_SQUARES_BITS = 30
_STAIRS = (1.0, 1.25, 1.5, 1.75)


def reciprocal(context: Context, share: torch.Tensor, *, most: int) -> torch.Tensor:
    """Return shares of 1/x with `FINE_BITS` fractional bits, to a relative 1e-4, for 1 <= x <= `most`.

    Args:
        share: int64, a share of x with the context's precision.
    """
    precision = context.precision
    octaves = range(max(1, math.ceil(math.log2(most)) + 1))
    knots = [0.75] + [2.0**octave * stair for octave in octaves for stair in _STAIRS]
    # A chord lies above the curve, at most a little more than a hundredth.
    heights = [0.994 / knot for knot in knots]
    slopes = [(b - a) / (y - x) for a, b, x, y in zip(heights, heights[1:], knots, knots[1:], strict=False)]
    curve = Curve(heights[0], tuple(knots), (0.0, *slopes, 0.0))
    digits = 30
    high = precision + len(octaves) + 2
    guess = bend(context, share, curve, scale=precision, digits=digits, high=high)
    y = truncate(context, guess, precision + digits - FINE_BITS)
    product = truncate(context, multiply(context, share, y), precision)
    return truncate(context, multiply(context, y, _minus(context, 2, product)), FINE_BITS)


def squares_bits(most: float) -> int:
    """Return the fractional bits for numbers up to `most` with which `inverse_root` multiplies them within the ring."""
    whole = math.ceil(math.log2(most))
    return max(SQUARES_BITS, min(MOST_SQUARES_BITS, HEADROOM_BITS - 2 - FINE_BITS - (whole + 1) // 2))


def inverse_root(context: Context, share: torch.Tensor, *, scale: int, least: float, most: float) -> torch.Tensor:
    """Return shares of 1/sqrt(x) with `FINE_BITS` fractional bits, to a relative 1e-4, for `least` <= x <= `most`.

    Args:
        share: int64, a share of x with `scale` fractional bits, those of `squares_bits`; x is below 2**28.
    """
    first, last = math.floor(math.log2(max(least, 2.0**-SQUARES_BITS))), math.ceil(math.log2(most))
    edges = [2.0**octave * stair for octave in range(first, last + 1) for stair in _STAIRS]
    # Beyond the last edge a step of the staircase is as wide as the one before.
    ends = [*edges[1:], edges[-1] * 1.25]
    levels = [round(2.0**FINE_BITS / math.sqrt((low + high) / 2)) for low, high in zip(edges, ends, strict=True)]
    places = torch.tensor(edges[1:], dtype=torch.float64).mul(2.0**scale).round().to(torch.int64)
    places = places.view(-1, *[1] * share.dim())
    moved = share[None] - places if context.rank == SERVER else share[None].expand(len(places), *share.shape)
    # Where a stair begins need not be exact.
    reached = at_least_zero(context, moved, low=scale - SQUARES_BITS, high=scale + max(1, last + 2))
    y = torch.full_like(share, levels[0] if context.rank == SERVER else 0)
    for bit, low, high in zip(reached, levels, levels[1:], strict=False):
        y += bit * (high - low)
    for _ in range(2):
        # x * y first, which is the root: y * y would lose its digits where x is large.
        root = truncate(context, multiply(context, share, y), FINE_BITS)
        unit = truncate(context, multiply(context, root, y), scale)
        y = truncate(context, multiply(context, y, _minus(context, 3, unit)), FINE_BITS + 1)
    return y


def _minus(context: Context, whole: int, share: torch.Tensor) -> torch.Tensor:
    return (whole << FINE_BITS) - share if context.rank == SERVER else -share


def exponentials(
    context: Context, share: torch.Tensor, curve: Curve, *, high: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return shares of values minus the largest along the first dimension, of their exponentials, and of these' sum.

    Args:
        share: int64 (size, n) with the context's precision; magnitudes and differences below 2**high.
        curve: exp(x / 4) up to 0, and 0 where that is small.

    Returns:
        int64 (size, n), (size, n) and (n,), with the context's precision.
    """
    top = largest(context, share, zero=False, high=high + 1)
    below = share - top
    # The knots' distance from zero is the exponential's range, which a small bound may not hold.
    width = max(high, context.precision + math.ceil(math.log2(-curve.knots[0] + 1))) + 2
    bent = bend(context, below, curve, scale=context.precision, digits=context.precision, high=width)
    # exp(x / 4) to the fourth power: what is off by as much everywhere would add up over many small values.
    powers = truncate(context, bent, context.precision)
    for _ in range(2):
        powers = truncate(context, square(context, powers), context.precision)
    return below, powers, powers.sum(0)


def softmax(context: Context, share: torch.Tensor, curve: Curve, *, high: int) -> torch.Tensor:
    """Return shares of the softmax along the first dimension; arguments as in `exponentials`.

    They have `FINE_BITS` more fractional bits than the context's precision.
    """
    _, powers, total = exponentials(context, share, curve, high=high)
    # A little more than the number of values: exponentials are approximate.
    y = reciprocal(context, total, most=len(share) + 1)
    return multiply(context, powers, y)


def row_bits(size: int, bits: int, precision: int, most: int) -> int:
    """Return the fractional bits, from `precision` to `most`, with which the sum of a row's squares fits the ring.

    Args:
        size: of the row, whose values are below 2**bits in magnitude.
    """
    return max(precision, min(most, (HEADROOM_BITS - 2 - size.bit_length() - 2 * bits) // 2))


def standardise(context: Context, share: torch.Tensor, *, scale: int, eps: float, bits: int) -> torch.Tensor:
    """Return shares of (x - mean) / sqrt(variance + eps) along the last dimension, with the context's precision.

    Args:
        share: int64 (..., size) with `scale` fractional bits, at most those of `row_bits`; magnitudes below 2**bits
            and size * 4**bits < 2**29.
    """
    size, precision = share.shape[-1], context.precision
    # As many digits of one in `size` as the ring holds: a row far from zero must not be moved by what they lack.
    parts = HEADROOM_BITS - 2 - scale - bits
    mean = truncate(context, share.sum(-1) * round(2.0**parts / size), parts)
    centred = share - mean[..., None]
    squares = square(context, centred).sum(-1)
    # Of the sum of squares, so that nothing is divided by the size before the root.
    most = min(2.0 ** (HEADROOM_BITS - 2 * FINE_BITS + 14), size * 4.0**bits + size * eps + 1)
    fine = squares_bits(most)
    total = truncate(context, squares, 2 * scale - fine)
    offset = max(1, round(size * eps * 2.0**fine))
    total = total + offset if context.rank == SERVER else total
    y = inverse_root(context, total, scale=fine, least=offset / 2.0**fine, most=most)
    # The product is at most one, so that there is room for the root of the size in full.
    digits = 20 + precision - scale - (size.bit_length() + 1) // 2
    result = multiply(context, centred, y[..., None]) * round(math.sqrt(size) * 2.0**digits)
    return truncate(context, result, FINE_BITS + digits + scale - precision)
