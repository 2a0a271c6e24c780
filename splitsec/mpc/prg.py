"""The one source of cryptographic randomness: AES-128 in counter mode.

A stream is fixed by a 128-bit seed and a 64-bit index. Two parties with the same seed read the same stream without
a message; a seed never serves two purposes, and an index of a seed never two queries.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SEED_BYTES = 16
_ZEROS = memoryview(bytes(1 << 20))


def fresh_seed() -> bytes:
    """Return a new seed of 16 bytes from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


class Stream:
    """A pseudorandom stream read from front to back.

    Args:
        seed: 16 bytes, secret.
        index: which of the seed's 2**64 streams; each has 2**64 blocks of 16 bytes.
    """

    def __init__(self, seed: bytes, index: int = 0) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        counter = index.to_bytes(8, "big") + bytes(8)
        self._encryptor = Cipher(algorithms.AES(seed), modes.CTR(counter)).encryptor()

    def fill(self, out: memoryview) -> None:
        """Overwrite `out` (bytes) with the next bytes of the stream."""
        for start in range(0, len(out), len(_ZEROS)):
            part = out[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(part)], part)

    def bytes(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Return the next `count` bytes, uint8."""
        out = np.empty(count, dtype=np.uint8)
        self.fill(memoryview(out))
        return out

    def ring(self, shape: Sequence[int]) -> torch.Tensor:
        """Return uniform elements of Z_2^64, int64 of `shape`."""
        out = torch.empty(tuple(shape), dtype=torch.int64)
        if out.numel():
            self.fill(memoryview(out.view(-1).view(torch.uint8).numpy()))
        return out

    def bits(self, shape: Sequence[int]) -> torch.Tensor:
        """Return uniform bits, int64 of `shape` with values 0 and 1."""
        count = math.prod(shape)
        packed = self.bytes((count + 7) // 8)
        return torch.from_numpy(np.unpackbits(packed, count=count).astype(np.int64)).view(tuple(shape))
