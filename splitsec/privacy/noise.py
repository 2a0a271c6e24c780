"""Gaussian noise from the AES-CTR generator: real, and discrete in the ring."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from splitsec.mpc.prg import Stream


def gaussian(stream: Stream, shape: Sequence[int], std: float) -> torch.Tensor:
    """Gaussian noise, float64 of `shape`.

    Each value is half of the sum of four: with one, the numbers that floating point can make of a value would tell
    noise and value apart (I. Mironov, "On significance of the least significant bits for differential privacy", CCS
    2012). Four leave an attacker with about 2^159 cases: N. Holohan and S. Braghin, "Secure random sampling in
    differential privacy", ESORICS 2021, section 4.2, with n = 2, as in Opacus's secure mode.
    """
    count = math.prod(shape)
    four = _normal(stream, 4 * count).reshape(4, count).sum(0)
    return torch.from_numpy(four * (std / 2)).view(tuple(shape))


def _normal(stream: Stream, count: int) -> NDArray[np.float64]:
    """G. Box and M. Muller, "A note on the generation of random normal deviates", 1958."""
    half = (count + 1) // 2
    raw = stream.bytes(16 * half).view(np.uint64)
    # From (0, 1] for the logarithm: 53 random bits each.
    first, second = ((raw >> 11).astype(np.float64) + 1).reshape(2, half) * 2.0**-53
    radius = np.sqrt(-2 * np.log(first))
    angle = 2 * np.pi * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


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
    found = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        # Somewhat more than a half is kept.
        tried = _discrete_laplace(stream, int(1.8 * (count - filled)) + 16, scale)
        kept = tried[_happens(stream, (np.abs(tried).astype(np.float64) - std**2 / scale) ** 2 / (2 * std**2))]
        kept = kept[: count - filled]
        found[filled : filled + len(kept)] = kept
        filled += len(kept)
    return torch.from_numpy(found)


def _discrete_laplace(stream: Stream, count: int, scale: int) -> NDArray[np.int64]:
    """Values with probability proportional to exp(-|x| / scale); the same paper, algorithm 2."""
    found: list[NDArray[np.int64]] = []
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
        found.append(value)
        filled += len(value)
    return np.concatenate(found)[:count]


def _happens(stream: Stream, gamma: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True with probability exp(-gamma)."""
    words = (_words(stream, len(gamma)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return words < np.exp(-gamma)


def _words(stream: Stream, count: int) -> NDArray[np.uint64]:
    return stream.bytes(8 * count).view(np.uint64)
