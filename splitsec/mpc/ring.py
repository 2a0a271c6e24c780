"""Fixed point in the ring Z_2^64 and additive sharing: int64 tensors that wrap around.

The representation is CrypTen's: a real number x stands as round(x * 2**f) modulo 2**64, with f fractional bits, and
a secret is the sum of one share a party.
"""

from __future__ import annotations

import numpy as np
import torch

from splitsec.errors import RangeError
from splitsec.mpc.bit_planes import to_fixed_point

RING_BITS = 64
PRECISION_BITS = 16
# A product of two fixed-point numbers carries 2f fractional bits and must stay below 2**62 in magnitude for the
# truncation by masked opening; so must every value that is compared.
HEADROOM_BITS = 62


def real_limit(precision: int = PRECISION_BITS) -> float:
    """Return the magnitude below which the product of two encoded numbers can still be truncated."""
    return float(2 ** (HEADROOM_BITS - 2 * precision))


def encode(
    x: torch.Tensor,
    precision: int = PRECISION_BITS,
    *,
    what: str = "value",
    limit: float | None = None,
    why: str = "the fixed-point range",
) -> torch.Tensor:
    """Convert a real tensor of any float dtype to int64 ring elements, rounded to the nearest.

    Raises:
        RangeError: an element is not finite or its magnitude reaches `limit`, or else `real_limit(precision)`; see
            `check_range` for the words.
    """
    limit = real_limit(precision) if limit is None else limit
    real = x.detach().cpu()
    if real.dtype not in (torch.float32, torch.float64):
        real = real.double()
    largest = np.zeros(1)
    encoded = to_fixed_point(real.contiguous().view(-1).numpy(), float(1 << precision), largest)
    if not largest[0] < limit:
        check_range(x, limit=limit, what=what, why=why)
    return torch.from_numpy(encoded).view(x.shape)


def decode(x: torch.Tensor, precision: int = PRECISION_BITS) -> torch.Tensor:
    """Convert int64 ring elements to float32."""
    return (x.double() / (1 << precision)).float()


def check_range(x: torch.Tensor, *, limit: float, what: str, why: str = "the fixed-point range") -> None:
    """Raise `RangeError`, naming `what` and the value, if an element is not finite or reaches `limit`."""
    if x.numel() == 0:
        return
    largest = x.detach().abs().max().item()
    if largest < limit:
        return
    if not torch.isfinite(x).all():
        bad = x.detach().flatten()[~torch.isfinite(x.detach().flatten())][0].item()
        raise RangeError(f"{what} holds {bad}, which is not a finite number")
    shown = f"{largest:g}" if f"{largest:g}" != f"{limit:g}" else f"{largest:.9g}"
    raise RangeError(f"{what} holds a value of magnitude {shown}, beyond {limit:g}, {why}")


def shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift ring elements, read as unsigned, right by 0 < bits < 64."""
    return (x >> bits) & ((1 << (RING_BITS - bits)) - 1)


def top_bit(x: torch.Tensor) -> torch.Tensor:
    """Return the most significant bit of each element, int64 with values 0 and 1."""
    return (x < 0).to(torch.int64)
