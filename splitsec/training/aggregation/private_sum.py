"""Private sum: with privacy by record, the sum of the clients' gradients of every step, with noise in shares.

One optimizer at the server steps for all clients: S. Reddi et al., "Adaptive federated optimization", ICLR 2021,
algorithm 2 with FedAdam. What clients are sent is how far the segments have come from their first values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from splitsec.settings.run import RunSettings
from splitsec.training.aggregation.average import AverageAtClient, AverageAtServer
from splitsec.training.aggregation.base import RULES, Rule, Seeds
from splitsec.training.aggregation.masking import combine
from splitsec.training.checkpoints import optimizer_tensors, restore_optimizer
from splitsec.training.front import FrontTrainer
from splitsec.training.messages import Hello
from splitsec.training.step import make_optimizer, set_rate
from splitsec.transport import NamedTensors


class PrivateSumAtServer(AverageAtServer):
    """Takes one step of Adam with the sum of the clients' gradients."""

    takes_norms = True

    def __init__(self, settings: RunSettings) -> None:
        super().__init__(settings)
        self._moved = nn.Parameter(torch.empty(0, dtype=torch.float64))
        self._adam: torch.optim.Optimizer | None = None

    def combine(
        self,
        uploads: Mapping[str, torch.Tensor],
        mask_sum: torch.Tensor,
        members: Mapping[str, Hello],
        *,
        learning_rate: float,
        expected: float,
    ) -> torch.Tensor:
        gradient = combine(uploads.values(), mask_sum, total_weight=1) / expected
        if self._adam is None:
            self._start(torch.zeros_like(gradient))
        assert self._adam is not None
        set_rate(self._adam, learning_rate)
        self._moved.grad = gradient
        self._adam.step()
        self.last = self._moved.detach().clone()
        return self.last

    def _start(self, moved: torch.Tensor) -> None:
        self._moved = nn.Parameter(moved.clone())
        self._adam = make_optimizer([self._moved], self._settings.learning_rate)

    def tensors(self) -> dict[str, torch.Tensor]:
        adam = {f"combined.{name}": tensor for name, tensor in optimizer_tensors(self._adam).items()}
        return super().tensors() | adam

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().restore(tensors)
        if self.last is not None:
            self._start(self.last)
            prefix = "combined."
            adam = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            restore_optimizer(self._adam, adam)


class PrivateSumAtClient(AverageAtClient):
    """Uploads the sum of a step's clipped gradients with this client's noise share, and the norms of its rows."""

    def values(self, trainer: FrontTrainer) -> torch.Tensor:
        return self._member.state.arranged(trainer.take_sum())

    def load(self, vector: torch.Tensor) -> None:
        member = self._member
        values = member.first + vector[: member.state.values]
        member.state.load(member.protection.only_trained(values, member.state.flat()))

    def _tensors(
        self, vector: torch.Tensor, trainer: FrontTrainer, seeds: Seeds, *, weight: int, round_number: int
    ) -> NamedTensors:
        tensors = super()._tensors(vector, trainer, seeds, weight=weight, round_number=round_number)
        return {**tensors, "row_norms": trainer.norms}


RULES.register("private_sum")(Rule(PrivateSumAtServer, PrivateSumAtClient))
