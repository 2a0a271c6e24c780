"""Separate: every client keeps its own segments."""

from __future__ import annotations

import torch

from splitsec.training.aggregation.base import RULES, ClientAggregation, Rule, Seeds, ServerAggregation
from splitsec.training.front import FrontTrainer
from splitsec.transport import NamedTensors


class SeparateAtServer(ServerAggregation):
    """Nothing is uploaded."""

    seeded = False


class SeparateAtClient(ClientAggregation):
    """Nothing is uploaded, and nothing comes back."""

    seeded = False
    combines = False

    def upload(
        self, vector: torch.Tensor, trainer: FrontTrainer, seeds: Seeds, *, weight: int, round_number: int, rounds: int
    ) -> NamedTensors:
        return {"masked": []}


RULES.register("none")(Rule(SeparateAtServer, SeparateAtClient))
