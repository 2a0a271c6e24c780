"""Results of encrypted prediction, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import torch


@dataclass(frozen=True)
class Predictions:
    """Results of encrypted prediction and their costs.

    Attributes:
        labels: int64 (N,): the class with the largest logit, see `labels_of`.
        logits: float32 (N, classes), opened to this client alone; None where only labels are revealed.
        online_ms: milliseconds a query from the images to the opened result.
        offline_ms: milliseconds a query to get its randomness ready at both parties.
        rounds: rounds a query, online.
        bytes_sent, bytes_received: bytes a query, online, as this client sees them.
        bytes_offline: bytes a query that the dealer sends to the server.
        ids: of columns, whose result each row is; else empty.
    """

    labels: torch.Tensor = field(repr=False)
    logits: torch.Tensor | None = field(repr=False)
    online_ms: list[float] = field(repr=False)
    offline_ms: list[float] = field(repr=False)
    rounds: int
    bytes_sent: int
    bytes_received: int
    bytes_offline: int
    ids: tuple[str, ...] = field(default=(), repr=False)

    @property
    def online_ms_median(self) -> float:
        """Return the median of `online_ms`."""
        return median(self.online_ms)

    @property
    def offline_ms_median(self) -> float:
        """Return the median of `offline_ms`."""
        return median(self.offline_ms)


def labels_of(logits: torch.Tensor) -> torch.Tensor:
    """Return the class with the largest logit, along the second dimension.

    Of a single logit whether it is above zero.
    """
    if logits.dim() == 1 or (logits.dim() == 2 and logits.shape[1] == 1):
        return (logits.reshape(-1) > 0).long()
    return logits.argmax(1)
