"""What a rule of aggregation is: a half at the server, a half at each client, and a name in the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import torch

from splitsec.errors import MessageError
from splitsec.registry import Registry
from splitsec.settings.run import RunSettings
from splitsec.training.aggregation.masking import OneTime
from splitsec.training.flat_state import Combinable
from splitsec.training.front import FrontTrainer
from splitsec.training.messages import Combined, Hello
from splitsec.transport import NamedTensors


class ServerAggregation:
    """The server's half of a rule.

    Attributes:
        masked: whether an upload is a vector under a mask, of which the dealer opens sums.
        seeded: whether clients get seeds from the dealer.
        takes_turns: whether one client trains in each round.
        takes_norms: whether norms of each row's gradient come with an upload.
        last: the values that clients begin the next round with, float64; None where the server knows none.
        holder: with turns, the client that has the newest segments; else empty.
        lost: with turns, whether the holder was started again without them.
    """

    masked = False
    seeded = True
    takes_turns = False
    takes_norms = False
    holder = ""
    lost = False

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self.last: torch.Tensor | None = None

    @property
    def minimum(self) -> int:
        """Return the fewest clients with which a round can end."""
        return 1

    def trainers(self, round_number: int, there: Sequence[str]) -> list[str]:
        """Return the clients that train in a round, of those that are there; the others wait for its end.

        Raises:
            SplitsecError: the run cannot go on with these clients.
        """
        return list(there)

    def add_upload(
        self, name: str, masked: Sequence[torch.Tensor], *, length: int, round_number: int, rounds: int
    ) -> torch.Tensor | None:
        """Check a client's upload; return its masked vector, int64 (length,), None where there is none.

        Raises:
            MessageError: there are more or fewer vectors than are due, or longer ones.
        """
        if masked:
            raise MessageError(f"Upload: {len(masked)} masked vectors, and none is due")
        return None

    def combine(
        self,
        uploads: Mapping[str, torch.Tensor],
        mask_sum: torch.Tensor,
        members: Mapping[str, Hello],
        *,
        learning_rate: float,
        expected: float,
    ) -> torch.Tensor:
        """Return what every client is sent at the end of a round, float64; only where uploads are masked.

        Args:
            uploads: vectors by client, int64.
            mask_sum: the sum of their masks, int64.
            learning_rate, expected: of the round, and the average number of samples in its step, for a rule that steps.
        """
        raise NotImplementedError

    def end_for(self, name: str, done: Combined, owed: Sequence[str]) -> tuple[Combined, NamedTensors]:
        """Return the end of a round as one client is told it."""
        return done, {"combined": self.last}

    def owed(self, round_number: int, rounds: int, there: Collection[str]) -> tuple[str, ...]:
        """Return the clients that wait for segments from the holder before the next round."""
        return ()

    def serves(self, name: str) -> bool:
        """Return whether a client can have the last segments when the run is over."""
        return True

    def hand_on(self, name: str, names: Sequence[str], round_number: int, vectors: Sequence[torch.Tensor]) -> None:
        """Accept vectors of the holder for the clients in `names`; raises `MessageError` where none are due."""
        raise MessageError("Handed was not due")

    def sealed_for(self, name: str) -> torch.Tensor | None:
        """Return the vector that is held for one client."""
        return None

    @property
    def pad(self) -> int:
        """Return the number of the pads of the vectors that are held."""
        return 0

    def started_again(self, name: str, *, has_segments: bool) -> None:
        """Note that a client was started again, with the last segments or without."""

    def renew(self) -> None:
        """Forget what is under seeds that have been replaced."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint keeps."""
        return {} if self.last is None else {"combined.last": self.last}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` returned."""
        self.last = tensors.get("combined.last")


@dataclass(frozen=True)
class Seeds:
    """A client's seeds of a run: its own, which the dealer knows, and those that it shares with each other client."""

    own: bytes = field(default=b"", repr=False)
    pairs: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class UploadProtection(Protocol):
    """What a run does for a client's privacy in its uploads."""

    @property
    def noisy(self) -> bool:
        """Return whether uploads carry this client's share of the noise."""

    @property
    def silent(self) -> bool:
        """Return whether a budget keeps losses, and values that are not trained, at the client."""

    def upload(self, flat: torch.Tensor, *, seed: bytes, round_number: int) -> torch.Tensor:
        """Return a vector with noise under its mask, int64."""

    def only_trained(self, values: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return values with this client's own in the place of those that are not trained."""


@dataclass(frozen=True)
class Member:
    """A client as its half of a rule sees it.

    Attributes:
        name: of the client.
        settings: of the run.
        state: the values of its segments.
        first: those values before the run, float64.
        extra: how many figures an upload has beside the values.
        protection: what the run does for its privacy.
        used: which masks and pads it has used.
    """

    name: str
    settings: RunSettings
    state: Combinable = field(repr=False)
    first: torch.Tensor = field(repr=False)
    extra: int
    protection: UploadProtection = field(repr=False)
    used: OneTime = field(repr=False)

    @property
    def length(self) -> int:
        """Return the number of values of an upload."""
        return self.state.values + self.extra


class ClientAggregation(ABC):
    """A client's half of a rule.

    Attributes:
        seeded: whether this client asks the dealer for a seed.
        paired: whether it shares a seed with each other client.
        combines: whether clients end a round with common segments.
        stale: whether another client has newer segments, which have not come yet.
        owes: the clients that are to be sent this client's segments once more.
    """

    seeded = True
    paired = False
    combines = True
    stale = False
    owes: tuple[str, ...] = ()

    def __init__(self, member: Member) -> None:
        self._member = member

    def trains(self, round_number: int) -> bool:
        """Return whether this client trains in a round."""
        return True

    def passes(self, round_number: int) -> int:
        """Return how many rounds this client has trained in before a round."""
        return round_number

    def values(self, trainer: FrontTrainer) -> torch.Tensor:
        """Return the values that others get of this client, float64."""
        member = self._member
        values = member.state.flat()
        return member.protection.only_trained(values, member.first) if member.protection.silent else values

    def load(self, vector: torch.Tensor) -> None:
        """Give the segments the values of a combined vector, float64."""
        member = self._member
        values = vector[: member.state.values]
        if member.protection.silent:
            values = member.protection.only_trained(values, member.state.flat())
        member.state.load(values)

    @abstractmethod
    def upload(
        self, vector: torch.Tensor, trainer: FrontTrainer, seeds: Seeds, *, weight: int, round_number: int, rounds: int
    ) -> NamedTensors:
        """Return the tensors of an upload, as `messages.Upload` declares them.

        Args:
            vector: this client's values and figures, float64.
            weight: its number of samples.
        """

    def renewed(self, before: Seeds, seeds: Seeds, round_number: int) -> NamedTensors | None:
        """Return the round's upload under new seeds; None where nothing has been uploaded."""
        return None

    def opened(self, done: Combined, tensors: NamedTensors, seeds: Seeds, rounds: int) -> torch.Tensor | None:
        """Return the combined vector of a round's end, float64; None where there is none."""
        combined: torch.Tensor | None = tensors.get("combined")
        return combined

    def opened_late(self, vectors: Sequence[torch.Tensor], sender: str, pad: int, seeds: Seeds) -> torch.Tensor | None:
        """Return the segments that the holder hands over after a round's end; None where none are due."""
        return None

    def again(self, vector: torch.Tensor, seeds: Seeds, round_number: int) -> list[torch.Tensor]:
        """Return this client's segments for those in `owes`."""
        return []


@dataclass(frozen=True)
class Rule:
    """A rule of aggregation: its two halves."""

    server: type[ServerAggregation]
    client: type[ClientAggregation]


RULES: Registry[Rule] = Registry("rule of aggregation", package="splitsec.training.aggregation")


def rule_of(settings: RunSettings) -> Rule:
    """Return the rule of a run."""
    return RULES.get("private_sum" if settings.privacy.sums_steps else settings.aggregation)


def replaced(done: Combined, **facts: object) -> Combined:
    """Return a message with other facts."""
    return msgspec.structs.replace(done, **facts)
