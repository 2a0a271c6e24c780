"""Discrete Gaussian noise from the AES-CTR generator: in the ring, and on a grid of real numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from splitsec.mpc.prg import Stream
from splitsec.mpc.ring import check_range

# A grid has this many steps, or up to twice as many, in a standard deviation of the noise on it.
STEPS_IN_STD = 1 << 16


def grid_step(std: float, steps: int = STEPS_IN_STD) -> float:
    """Return the step of a grid for noise of this standard deviation: a power of two, so that scaling is exact."""
    return 2.0 ** (math.floor(math.log2(std)) - int(math.log2(steps)))


def with_noise(values: torch.Tensor, *, std: float, moved: float, stream: Stream) -> torch.Tensor:
    """Values with Gaussian noise, float64 of their shape, in multiples of a fixed step.

    In floating point the numbers that a value and its noise can add up to depend on the value, and tell them apart: a
    value of exactly zero lets the noise's finer digits through (I. Mironov, "On significance of the least significant
    bits for differential privacy", CCS 2012; S. Haney et al., "Precision-based attacks and interval refining", 2022).
    Here values are rounded to a grid and the noise is a discrete Gaussian on it, whose Rényi divergences are at most
    those of the continuous one (C. Canonne, G. Kamath and T. Steinke, as below, theorem 4).

    Args:
        std: of the noise; 0 for none.
        moved: L2 norm by which the unit that is protected can move the values. What rounding adds to it, up to a step a
            value, is made up for by as much more noise.

    Raises:
        RangeError: a value is not finite, or 2^52 steps and more from zero.
    """
    if not std:
        return values.double()
    step = grid_step(std)
    rounded = (values.double() / step).round()
    check_range(rounded, limit=2.0**52, what="what noise is added to")
    more = (moved + step * math.sqrt(values.numel())) / moved
    noise = discrete_gaussian(stream, values.numel(), std * more / step)
    return (rounded.long() + noise.view(values.shape)).double() * step


def discrete_gaussian(stream: Stream, count: int, std: float) -> torch.Tensor:
    """Discrete Gaussian noise: int64 (count,), value x with probability proportional to exp(-x^2 / (2 std^2)).

    C. Canonne, G. Kamath and T. Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020, algorithm 3:
    a discrete Laplace value of scale t = floor(std) + 1 is kept with probability exp(-(|y| - std^2/t)^2 / (2 std^2)).
    Probabilities are computed in double precision and compared with 53 random bits, so that a value's distribution is
    within about 2^-49 of the exact one.
    """
    if not 0 < std < 2.0**52:
        raise ValueError(f"a discrete Gaussian needs a standard deviation between 0 and 2^52, not {std:g}")
    scale = math.floor(std) + 1
    drawn = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        # Somewhat more than a half is kept.
        tried = _discrete_laplace(stream, int(1.8 * (count - filled)) + 16, scale)
        kept = tried[_happens(stream, (np.abs(tried).astype(np.float64) - std**2 / scale) ** 2 / (2 * std**2))]
        kept = kept[: count - filled]
        drawn[filled : filled + len(kept)] = kept
        filled += len(kept)
    return torch.from_numpy(drawn)


def _discrete_laplace(stream: Stream, count: int, scale: int) -> NDArray[np.int64]:
    """Values with probability proportional to exp(-|x| / scale); the same paper, algorithm 2."""
    drawn: list[NDArray[np.int64]] = []
    filled = 0
    while filled < count:
        tries = 2 * (count - filled) + 16
        words = _words(stream, tries)
        # Those beyond the last whole multiple of the scale would favour small remainders.
        low = (words[words < np.uint64((1 << 64) // scale * scale - 1)] % np.uint64(scale)).astype(np.int64)
        low = low[_happens(stream, low / scale)]
        high = np.zeros(len(low), dtype=np.int64)
        going = np.arange(len(low))
        while len(going):
            going = going[_happens(stream, np.ones(len(going)))]
            high[going] += 1
        value = low + scale * high
        negative = stream.bytes(len(value)) & 1 == 1
        # Minus zero is rejected, so that zero is not twice as likely.
        value = np.where(negative, -value, value)[~(negative & (value == 0))]
        drawn.append(value)
        filled += len(value)
    return np.concatenate(drawn)[:count]


def _happens(stream: Stream, gamma: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return True with probability exp(-gamma)."""
    words = (_words(stream, len(gamma)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return words < np.exp(-gamma)


def _words(stream: Stream, count: int) -> NDArray[np.uint64]:
    return stream.bytes(8 * count).view(np.uint64)
