"""Secret-shared weighted averaging of the clients' front segments.

Each upload is one additive share of the client's weighted parameters: the parameters plus a mask that the client and
the dealer derive from a seed of their own. The server adds the uploads; the dealer hands over the sum of the masks,
once a round and only for enough participants; the difference is the weighted sum. A single upload is uniform to the
server, and the dealer sees no upload at all.

Additive masking with a sum opened only in aggregate: K. Bonawitz et al., "Practical secure aggregation for
privacy-preserving machine learning", CCS 2017, section 4.1, with the dealer in the place of the pairwise key agreement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from splitsec.errors import MessageError, RandomnessError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.ring import check_range

FRACTION_BITS = 24
PARAMETER_LIMIT = 2.0**12
MAX_TOTAL_WEIGHT = 1 << 26
MAX_LENGTH = 1 << 28


def flatten_state(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The floating-point entries of a state dict, buffers such as running means included, as one float64 vector.

    Integer buffers (batch norm's count of batches) are counters of each client and stay with it.
    """
    parts = [tensor.detach().double().flatten() for tensor in state.values() if tensor.is_floating_point()]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def unflatten_state(flat: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with the names, shapes and dtypes of `like` and the values of `flat`."""
    expected = sum(tensor.numel() for tensor in like.values() if tensor.is_floating_point())
    if flat.numel() != expected:
        raise MessageError(f"the combined front has {flat.numel()} values, this segment {expected}")
    state, at = {}, 0
    for name, tensor in like.items():
        if tensor.is_floating_point():
            state[name] = flat[at : at + tensor.numel()].view(tensor.shape).to(tensor.dtype)
            at += tensor.numel()
        else:
            state[name] = tensor
    return state


def mask_upload(flat: torch.Tensor, *, weight: int, seed: bytes, round_number: int) -> torch.Tensor:
    """A client's upload: int64 ring elements of the same length as the float64 vector `flat`.

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


def combine(uploads: Iterable[torch.Tensor], mask_sum: torch.Tensor, *, total_weight: int) -> torch.Tensor:
    """The weighted average, float64, within 2**-25 of the exact one.

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


@dataclass
class MaskBook:
    """The dealer's side: one seed a client, and which rounds have been opened.

    Args:
        minimum: no sum of fewer masks than this is ever opened; at least 2.
    """

    minimum: int = 2
    _seeds: dict[str, bytes] = field(default_factory=dict, repr=False)
    _next_round: int = 0

    def __post_init__(self) -> None:
        if self.minimum < 2:
            raise RandomnessError("a sum over fewer than 2 clients would open a single client's parameters")

    def seed_for(self, client: str) -> bytes:
        """The client's seed for this run, made when it first asks and given once.

        Raises:
            RandomnessError: the client has had its seed; a second would let two uploads share a mask.
        """
        if client in self._seeds:
            raise RandomnessError(f"{client} has had its seed of this run; begin a new run")
        self._seeds[client] = fresh_seed()
        return self._seeds[client]

    def open_sum(self, round_number: int, participants: Sequence[str], length: int) -> torch.Tensor:
        """The sum of the participants' masks of one round, int64 of `length`; each round once, in order.

        Raises:
            RandomnessError: too few participants, a stranger among them, or a round that was opened.
            MessageError: an impossible length.
        """
        names = set(participants)
        if len(names) != len(participants) or len(names) < self.minimum:
            raise RandomnessError(
                f"masks of {len(names)} clients are not opened; the sum needs at least {self.minimum} different ones"
            )
        unknown = sorted(names - set(self._seeds))
        if unknown:
            raise RandomnessError(f"{', '.join(unknown)} takes no part in this run")
        if round_number < self._next_round:
            raise RandomnessError(f"the masks of round {round_number} have been opened; each round opens once")
        if not 0 <= length <= MAX_LENGTH:
            raise MessageError(f"a front of {length} parameters is beyond {MAX_LENGTH}")
        self._next_round = round_number + 1
        total = torch.zeros(length, dtype=torch.int64)
        for name in participants:
            total += Stream(self._seeds[name], round_number).ring((length,))
        return total
