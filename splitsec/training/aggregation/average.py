"""Average: the weighted mean of the clients' segments, opened at the end of each round.

Federated averaging: B. McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
AISTATS 2017, algorithm 1. Its momentum at the server: T.-M. H. Hsu et al., "Measuring the effects of non-identical data
distribution for federated visual classification" (FedAvgM), 2019, section 4.3; it acts on parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from splitsec.errors import MessageError
from splitsec.mpc.prg import Stream
from splitsec.settings.run import RunSettings
from splitsec.training.aggregation.base import RULES, ClientAggregation, Member, Rule, Seeds, ServerAggregation
from splitsec.training.aggregation.masking import combine, mask_upload
from splitsec.training.front import FrontTrainer
from splitsec.training.messages import Hello
from splitsec.transport import NamedTensors, expect_shape


class AverageAtServer(ServerAggregation):
    """Adds the masked uploads, takes the sum of the masks off, and divides."""

    masked = True

    def __init__(self, settings: RunSettings) -> None:
        super().__init__(settings)
        self._velocity: torch.Tensor | None = None

    @property
    def minimum(self) -> int:
        return self._settings.minimum_clients

    def add_upload(
        self, name: str, masked: Sequence[torch.Tensor], *, length: int, round_number: int, rounds: int
    ) -> torch.Tensor | None:
        if len(masked) != 1:
            raise MessageError(f"Upload: {len(masked)} masked vectors, and one is due")
        return expect_shape(masked[0], (length,), what="the upload")

    def weight(self, hello: Hello) -> int:
        """Return how much a client counts: its number of samples, and 1 where privacy is by client."""
        return 1 if self._settings.privacy.by_client else hello.samples

    def combine(
        self,
        uploads: Mapping[str, torch.Tensor],
        mask_sum: torch.Tensor,
        members: Mapping[str, Hello],
        *,
        learning_rate: float,
        expected: float,
    ) -> torch.Tensor:
        total = sum(self.weight(members[name]) for name in uploads)
        average = combine(uploads.values(), mask_sum, total_weight=total)
        self.last = self._with_momentum(average, next(members[name].parameters for name in uploads))
        return self.last

    def _with_momentum(self, average: torch.Tensor, parameters: int) -> torch.Tensor:
        beta = self._settings.server_momentum
        if not beta or self.last is None:
            return average
        change = (average - self.last)[:parameters]
        self._velocity = change if self._velocity is None else beta * self._velocity + change
        moved = average.clone()
        moved[:parameters] = self.last[:parameters] + self._velocity
        return moved

    def tensors(self) -> dict[str, torch.Tensor]:
        velocity = {} if self._velocity is None else {"combined.velocity": self._velocity}
        return super().tensors() | velocity

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().restore(tensors)
        self._velocity = tensors.get("combined.velocity")


class AverageAtClient(ClientAggregation):
    """Uploads this client's values, weighted and under a mask; where privacy is by client, with its noise share."""

    def __init__(self, member: Member) -> None:
        super().__init__(member)
        # The round that was uploaded last, and its tensors.
        self._uploaded: tuple[int, NamedTensors] = (-1, {})

    def weight(self, samples: int) -> int:
        """Return how much this client counts; what the server's `weight` returns for it."""
        return samples

    def upload(
        self, vector: torch.Tensor, trainer: FrontTrainer, seeds: Seeds, *, weight: int, round_number: int, rounds: int
    ) -> NamedTensors:
        self._use_mask(seeds, round_number)
        tensors = self._tensors(vector, trainer, seeds, weight=self.weight(weight), round_number=round_number)
        self._uploaded = round_number, tensors
        return tensors

    def _tensors(
        self, vector: torch.Tensor, trainer: FrontTrainer, seeds: Seeds, *, weight: int, round_number: int
    ) -> NamedTensors:
        protection = self._member.protection
        if protection.noisy:
            masked = protection.upload(vector, seed=seeds.own, round_number=round_number)
        else:
            masked = mask_upload(vector, weight=weight, seed=seeds.own, round_number=round_number)
        return {"masked": [masked]}

    def renewed(self, before: Seeds, seeds: Seeds, round_number: int) -> NamedTensors | None:
        number, tensors = self._uploaded
        if number != round_number:
            return None
        # The same values under another mask: what they are was settled when they were first sent.
        self._use_mask(seeds, number)
        (vector,) = tensors["masked"]
        moved = Stream(seeds.own, number).ring(vector.shape) - Stream(before.own, number).ring(vector.shape)
        self._uploaded = number, {**tensors, "masked": [vector + moved]}
        return self._uploaded[1]

    def _use_mask(self, seeds: Seeds, round_number: int) -> None:
        """Note that a round's mask under these seeds is used, whatever the server says of rounds."""
        self._member.used.add(seeds.own, str(round_number), what=f"the mask of round {round_number + 1}")


RULES.register("average")(Rule(AverageAtServer, AverageAtClient))
