"""Inputs of noise that all parties could make: ranges are measured on them where weights guarantee none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from splitsec.mpc.prg import SEED_BYTES, Stream


def noise_inputs(
    rows: int, shape: Sequence[int], dtype: torch.dtype, agreed: str, *, words: int | None
) -> torch.Tensor:
    """Return inputs (rows, *shape) that say nothing about any data but their shape.

    Real numbers are uniform with mean 0 and standard deviation 1, as inputs of a trained model usually are.

    Args:
        agreed: text that all parties know; equal texts give equal inputs.
        words: for a model that looks its input up, the number of rows of its table; then the inputs are whole
            numbers below it.
    """
    seed = hashlib.sha256(b"noise inputs " + agreed.encode()).digest()[:SEED_BYTES]
    ring = Stream(seed).ring((rows, *shape))
    return ring % words if words is not None else (ring.double() * 2.0**-63 * math.sqrt(3)).to(dtype)
