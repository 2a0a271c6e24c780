"""Differential privacy by client: clipped updates, and noise in shares that add up to what is accounted for.

The distributed discrete Gaussian mechanism: P. Kairouz, Z. Liu and T. Steinke, "The distributed discrete Gaussian
mechanism for federated learning with secure aggregation", ICML 2021, section 4. Each of the `shares` clients adds
discrete Gaussian noise of variance `std^2 / shares` before masking; masks cancel in the sum, which carries `std^2`.
A sum of discrete Gaussians is not quite one, but with shares of more than 10 units, as here, the difference is below
10^-400 (the same paper, theorem 11).

Clients that drop out take their shares with them. The dealer, which opens the sum of the masks of those who are there,
adds as many shares as are missing to it: it sees no upload, and the server cannot take the noise off again.
"""

from __future__ import annotations

import math

import msgspec
import torch

from splitsec.errors import MessageError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.privacy.noise import discrete_gaussian, with_noise
from splitsec.settings.privacy import GradientNoise

# Fewer units would make sums of discrete Gaussians differ from one.
LEAST_STD = 10.0
MOST_STD = 2.0**48


class NoiseShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The noise in a sum of uploads, in units of the ring.

    Attributes:
        std: of the whole sum.
        shares: in how many equal parts it comes, one a client of the run.
    """

    std: float
    shares: int

    def share(self, length: int) -> torch.Tensor:
        """One share for a vector: int64 (length,)."""
        return discrete_gaussian(Stream(fresh_seed()), length, self.std / math.sqrt(self.shares))

    def missing(self, length: int, there: int) -> torch.Tensor:
        """Return the sum of the noise shares of all clients that are not there, int64 (length,)."""
        gone = self.shares - there
        if gone <= 0:
            return torch.zeros(length, dtype=torch.int64)
        return discrete_gaussian(Stream(fresh_seed()), length, self.std * math.sqrt(gone / self.shares))


def check_shares(noise: NoiseShares, most: int) -> None:
    """Raise `MessageError` for noise that the ring cannot hold or that would not be distributed as promised."""
    if not 1 <= noise.shares <= most:
        raise MessageError(f"noise in {noise.shares} shares, in a run of at most {most} clients")
    if not LEAST_STD * math.sqrt(noise.shares) <= noise.std <= MOST_STD:
        raise MessageError(f"noise with a standard deviation of {noise.std:g} units is out of range")


def clip_update(update: torch.Tensor, clip: float) -> torch.Tensor:
    """Return the vector, scaled down to L2 norm `clip` if it is longer: float64."""
    norm = float(update.norm())
    return update * min(1.0, clip / max(norm, 1e-30))


def noise_of_sum(*, clip: float, noise: float, part: float, length: int, shares: int, bits: int) -> NoiseShares:
    """Return the noise of a sum of fixed-point vectors.

    Args:
        clip: of one unit's contribution, both sides of the cut together.
        noise: the noise multiplier.
        part: L2 norm of the part of it that is in the sum.
        bits: fractional bits of the fixed point.
    """
    unit = 1 << bits
    # A client's vector is rounded with and without the unit in it, each by up to half a unit a value.
    longer = (part * unit + math.sqrt(length)) / (part * unit)
    return NoiseShares(noise * clip * unit * longer, shares)


class ServerNoise:
    """Noise of the server's own on the tail's part of a sum, from a seed of its own.

    Args:
        noise: its standard deviation, and the norm of one unit's part of the sum.
    """

    def __init__(self, noise: GradientNoise) -> None:
        self._noise = noise
        self._stream = Stream(fresh_seed())

    def add(self, summed: torch.Tensor) -> torch.Tensor:
        """Return the vector with noise, float64."""
        return with_noise(summed, std=self._noise.std, moved=self._noise.clip, stream=self._stream)
