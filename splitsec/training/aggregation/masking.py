"""Secret-shared weighted averaging of the clients' front segments.

Each upload is one additive share of the client's weighted parameters: the parameters plus a mask that the client and
the dealer derive from a seed of their own. The server adds the uploads; the dealer hands over the sum of the masks,
once a round and only for enough participants; the difference is the weighted sum. A single upload is uniform to the
server, and the dealer sees no upload at all.

Additive masking with a sum opened only in aggregate: K. Bonawitz et al., "Practical secure aggregation for
privacy-preserving machine learning", CCS 2017, section 4.1, with the dealer in the place of the pairwise key agreement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch

from splitsec.errors import MessageError, RandomnessError
from splitsec.mpc.prg import SEED_BYTES, Stream
from splitsec.mpc.ring import check_range

FRACTION_BITS = 24
PARAMETER_LIMIT = 2.0**12
MAX_TOTAL_WEIGHT = 1 << 26


def mask_upload(flat: torch.Tensor, *, weight: int, seed: bytes, round_number: int) -> torch.Tensor:
    """Return a client's upload: int64 ring elements of the same length as the float64 vector `flat`.

    Args:
        weight: how much this client counts, usually its number of samples; 1 <= weight <= 2**26.

    Raises:
        RangeError: a parameter that is not finite or reaches 2**12.
    """
    if not 1 <= weight <= MAX_TOTAL_WEIGHT:
        raise MessageError(f"the weight {weight} is not between 1 and {MAX_TOTAL_WEIGHT}")
    check_range(flat, limit=PARAMETER_LIMIT, what="a parameter of the front", why="the range of averaging")
    encoded = torch.round(flat * (1 << FRACTION_BITS)).to(torch.int64) * weight
    return encoded + Stream(seed, round_number).ring(flat.shape)


def mask_update(
    begun: torch.Tensor, update: torch.Tensor, *, noise: torch.Tensor, seed: bytes, round_number: int
) -> torch.Tensor:
    """Return the upload of a client whose part is differentially private: `begun + update` with noise, of weight 1.

    Args:
        begun: what all clients have in common, float64: the values that they began the round with.
        update: clipped, float64. It is rounded by itself, which moves it by at most half a unit a value.
        noise: this client's share, in units of 2**-24, int64.
    """
    check_range(update, limit=PARAMETER_LIMIT, what="a value of the update", why="the range of averaging")
    encoded = torch.round(update * (1 << FRACTION_BITS)).to(torch.int64)
    return mask_upload(begun, weight=1, seed=seed, round_number=round_number) + encoded + noise


def combine(uploads: Iterable[torch.Tensor], mask_sum: torch.Tensor, *, total_weight: int) -> torch.Tensor:
    """Return the weighted average, float64, within 2**-25 of the exact one.

    Args:
        uploads: int64 vectors of one length.
        mask_sum: the sum of exactly these uploads' masks.
        total_weight: the sum of their weights, at most 2**26.
    """
    if not 1 <= total_weight <= MAX_TOTAL_WEIGHT:
        raise MessageError(f"the weights add up to {total_weight}, more than {MAX_TOTAL_WEIGHT}")
    total = -mask_sum
    for upload in uploads:
        total = total + upload
    return total.double() / (total_weight * (1 << FRACTION_BITS))


def hand_over(flat: torch.Tensor, *, seed: bytes, sender: str, receiver: str, number: int) -> torch.Tensor:
    """Return the float64 vector `flat` as int64 under a one-time pad that only its sender and its receiver know.

    Args:
        seed: what the two share, see `MaskBook.pair_seeds`.
        number: of the pad; the same two clients use each number once in each direction.
    """
    return flat.contiguous().view(torch.int64) + _pad(seed, sender, receiver, number, flat.shape)


def take_over(handed: torch.Tensor, *, seed: bytes, sender: str, receiver: str, number: int) -> torch.Tensor:
    """Return the vector that `hand_over` covered, to the bit."""
    return (handed - _pad(seed, sender, receiver, number, handed.shape)).view(torch.float64)


def _pad(seed: bytes, sender: str, receiver: str, number: int, shape: Sequence[int]) -> torch.Tensor:
    # A pair has one seed and two directions, which must not share a pad.
    directed = hashlib.sha256(b"hand over " + seed + f"{sender} {receiver}".encode()).digest()
    return Stream(directed[:SEED_BYTES], number).ring(shape)


class OneTime:
    """Which masks and pads a client has used: none covers two vectors, whatever the server asks for."""

    def __init__(self) -> None:
        self._used: set[tuple[bytes, tuple[str, ...]]] = set()

    def add(self, seed: bytes, *number: str, what: str) -> None:
        """Note a use of a seed; raises `RandomnessError`, naming `what`, for the second with the same number."""
        if (seed, number) in self._used:
            raise RandomnessError(f"{what} has been used, and each covers one vector only; begin a new run")
        self._used.add((seed, number))
