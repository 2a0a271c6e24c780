"""Batches of a client's rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler

from splitsec.mpc.prg import SEED_BYTES, Stream
from splitsec.randomness import derived_seed


class Loader:
    """A client's batches from its training data, shuffled anew each epoch; a batch's number says which rows it has.

    A last batch of a single row is left out, since batch norm cannot train on it; each epoch leaves out another row.

    Args:
        inputs: (N, ...).
        labels: int64 (N,); None where another client has them.
        seed: of the order of rows: 16 secret bytes, or a number where the order is no secret, as where all clients have
            the same.
    """

    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor | None, *, batch_size: int, seed: int | bytes
    ) -> None:
        self._inputs = inputs
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order: list[list[int]] = []
        self.samples = len(inputs)
        alone = batch_size > 1 and self.samples > 1 and self.samples % batch_size == 1
        self.per_epoch = -(-self.samples // batch_size) - alone

    def rows(self, index: int) -> torch.Tensor:
        """Return the numbers of a batch's rows, int64."""
        epoch, at = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            self._order = list(BatchSampler(self._sampler(epoch), self._batch_size, drop_last=False))
            self._epoch = epoch
        return torch.tensor(self._order[at])

    def _sampler(self, epoch: int) -> Iterable[int]:
        # From the epoch's own seed, so that a run can go on anywhere.
        if isinstance(self._seed, int):
            generator = torch.Generator().manual_seed(derived_seed(f"epoch {epoch}", self._seed))
            return RandomSampler(range(self.samples), generator=generator)
        # Sorting 64 random bits a row shuffles them; two that are alike are one in 2^64 / samples^2.
        words = Stream(self._seed, epoch).bytes(8 * self.samples).view(np.uint64)
        order: list[int] = np.argsort(words).tolist()
        return order

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Return inputs, labels where there are some, and row numbers of a batch."""
        rows = self.rows(index)
        return self._inputs[rows], None if self._labels is None else self._labels[rows], rows


class PoissonLoader(Loader):
    """Batches for differential privacy: each row is in each batch with the same probability, independently.

    Whoever could tell which rows are in a batch would undo what sampling gains, so they come from a secret seed.

    Args:
        rate: the probability.
        per_epoch: how many batches count as an epoch.
        seed: 16 secret bytes.
    """

    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor | None, *, rate: float, per_epoch: int, seed: bytes
    ) -> None:
        super().__init__(inputs, labels, batch_size=len(inputs), seed=0)
        self._rate = rate
        self._key = seed[:SEED_BYTES]
        self.per_epoch = per_epoch

    def rows(self, index: int) -> torch.Tensor:
        """Return the numbers of a batch's rows, int64, in order; there may be none."""
        # The top 53 of 64 random bits, as a number in [0, 1).
        uniform = (Stream(self._key, index).bytes(8 * self.samples).view(np.uint64) >> 11).astype(np.float64) * 2.0**-53
        return torch.from_numpy(np.flatnonzero(uniform < self._rate))
