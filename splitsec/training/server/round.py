"""One round at the server: who trains in it, who has uploaded, and who was dropped from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Round:
    """What belongs to one round; the next round has a new one.

    Attributes:
        number: of the round, from 0 on.
        active: the clients that train in it.
        idle: the clients that wait for its end, as all but one do in a relay.
        began: when it began, in seconds.
        uploaded: the active clients that have uploaded.
        vectors: masked uploads by client, int64.
        norms: by client, of each row's gradient, float32 (rows,), where they come with uploads.
        dropped: the clients that it went on without.
    """

    number: int
    active: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    began: float = 0.0
    uploaded: set[str] = field(default_factory=set)
    vectors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    norms: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    dropped: list[str] = field(default_factory=list)

    @property
    def training(self) -> list[str]:
        """Return the active clients that have not uploaded."""
        return [name for name in self.active if name not in self.uploaded]

    @property
    def complete(self) -> bool:
        """Return whether all active clients have uploaded."""
        return len(self.uploaded) == len(self.active)

    def drop(self, names: Sequence[str]) -> None:
        """Go on without clients, whatever they have uploaded."""
        for name in names:
            self.active.remove(name)
            self.uploaded.discard(name)
            self.vectors.pop(name, None)
            self.dropped.append(name)

    def forget_uploads(self) -> None:
        """Wait for all uploads once more."""
        self.uploaded, self.vectors, self.norms = set(), {}, {}
