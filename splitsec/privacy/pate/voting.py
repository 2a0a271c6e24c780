"""Votes of teachers as shares of two parties, of which only answered labels open.

Each teacher gives one share of its votes and of its part of the noise to either party; neither party sees a vote, a
count or the noise. Each teacher adds discrete Gaussian noise of a fraction of the variance, so that the sum has all of
it (see `updates`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from splitsec.errors import MessageError
from splitsec.mpc.context import CLIENT, SERVER, Context
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.protocols.maximum import largest
from splitsec.mpc.protocols.sign import at_least_zero
from splitsec.privacy.noise import discrete_gaussian
from splitsec.privacy.pate.accounting import Confidence

# Fractional bits of a vote, on whose grid the noise lies.
BITS = 20
# Counts with noise are below 2^13 votes, and four more bits tell equal counts apart.
_TIE_BITS = 4
_HIGH = BITS + 13 + _TIE_BITS
MOST_CLASSES = 1 << _TIE_BITS
MOST_TEACHERS = 1 << 11


@dataclass(frozen=True)
class Ballot:
    """What one party holds of votes and noise, int64 shares: one teacher's, or the sum of all.

    Attributes:
        votes: (classes, queries), in units of 2**-BITS votes.
        threshold_noise: (queries,).
        vote_noise: (classes, queries).
    """

    votes: torch.Tensor
    threshold_noise: torch.Tensor
    vote_noise: torch.Tensor

    def __add__(self, other: Ballot) -> Ballot:
        return Ballot(
            self.votes + other.votes,
            self.threshold_noise + other.threshold_noise,
            self.vote_noise + other.vote_noise,
        )


def cast(labels: torch.Tensor, classes: int, confidence: Confidence, *, teachers: int) -> tuple[Ballot, Ballot]:
    """One teacher's shares for the two parties.

    Args:
        labels: its label for each query, int64 (queries,).
        teachers: their number; each adds the same share of the noise.
    """
    if not 2 <= classes <= MOST_CLASSES or not 2 <= teachers <= MOST_TEACHERS:
        raise MessageError(
            f"votes of {teachers} teachers on {classes} classes; at most {MOST_TEACHERS}, {MOST_CLASSES}"
        )
    queries = len(labels)
    votes = torch.zeros(classes, queries, dtype=torch.int64)
    votes[labels, torch.arange(queries)] = 1 << BITS
    stream = Stream(fresh_seed())

    def noise(std: float, count: int) -> torch.Tensor:
        return discrete_gaussian(stream, count, std * (1 << BITS) / math.sqrt(teachers))

    whole = (
        votes,
        noise(confidence.threshold_noise, queries),
        noise(confidence.vote_noise, classes * queries).view(classes, queries),
    )
    masks = [stream.ring(part.shape) for part in whole]
    return Ballot(*masks), Ballot(*(part - mask for part, mask in zip(whole, masks, strict=True)))


def confident(context: Context, ballot: Ballot, threshold: float) -> torch.Tensor | None:
    """Whether each query's highest count with noise reaches the threshold, opened to both: int64 (queries,)."""
    most = largest(context, ballot.votes, zero=False, high=_HIGH)
    least = round(threshold * (1 << BITS)) if context.rank == SERVER else 0
    reached = at_least_zero(context, most + ballot.threshold_noise - least, high=_HIGH)
    (other,) = context.exchange([reached])
    return None if context.planning else reached + other


def winners(context: Context, ballot: Ballot) -> torch.Tensor | None:
    """Return the label with the highest noisy count of each query, opened to the client: int64 (queries,)."""
    noisy = (ballot.votes + ballot.vote_noise) * (1 << _TIE_BITS)
    classes = len(noisy)
    if context.rank == SERVER:
        # Of equal counts the first wins.
        noisy = noisy + torch.arange(classes - 1, -1, -1)[:, None]
    most = largest(context, noisy, zero=False, high=_HIGH)
    is_most = at_least_zero(context, noisy - most, high=_HIGH)
    # One number a query is opened, and nothing else: which class it is.
    label = (is_most * torch.arange(classes)[:, None]).sum(0)
    other = context.collect(label, CLIENT)
    return None if other is None or context.planning else label + other


def only(ballot: Ballot, queries: torch.Tensor) -> Ballot:
    """Return the ballot of some queries, by their int64 numbers."""
    return Ballot(ballot.votes[:, queries], ballot.threshold_noise[queries], ballot.vote_noise[:, queries])


def blank(classes: int, queries: int) -> Ballot:
    """Return a ballot of zeros, for planning."""
    return Ballot(
        torch.zeros(classes, queries, dtype=torch.int64),
        torch.zeros(queries, dtype=torch.int64),
        torch.zeros(classes, queries, dtype=torch.int64),
    )
