"""Combining the clients' segments at the server, which reads no single one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from splitsec.errors import MessageError
from splitsec.training.aggregation import combine
from splitsec.training.checkpoints import optimizer_tensors, restore_optimizer
from splitsec.training.loop import make_optimizer, set_rate
from splitsec.training.messages import DealerBody, Hello, MaskSum, OpenMasks, Unseeded
from splitsec.training.schedule import Schedule
from splitsec.transport import expect_tensor


class ClientsUnseeded(Exception):
    """Clients whose uploads cannot be unmasked, since they never asked the dealer for a seed of the round."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = tuple(names)


AskDealer: TypeAlias = Callable[[DealerBody], tuple[DealerBody, list[torch.Tensor]]]


class Combiner:
    """Makes one vector out of a round's uploads, by the schedule's rule.

    The server's momentum acts on parameters alone: T.-M. H. Hsu et al., "Measuring the effects of non-identical data
    distribution for federated visual classification" (FedAvgM), 2019, section 4.3.

    Where gradients are summed in every step, Adam steps here, as one optimizer for all clients (S. Reddi et al.,
    "Adaptive federated optimization", ICLR 2021, algorithm 2 with FedAdam), and what is sent is how far the segments
    have come from their first values.

    Attributes:
        last: the segments that clients begin the next round with, float64; None before the first average, and in a
            relay, where the server cannot read them.
    """

    def __init__(self, schedule: Schedule, ask_dealer: AskDealer) -> None:
        self._schedule = schedule
        self._ask_dealer = ask_dealer
        self.last: torch.Tensor | None = None
        self._velocity: torch.Tensor | None = None
        self._way = nn.Parameter(torch.empty(0, dtype=torch.float64))
        self._adam: torch.optim.Optimizer | None = None

    @property
    def uploads_values(self) -> bool:
        """Whether an upload carries a vector for an average."""
        return self._schedule.combine == "average"

    def combine(
        self,
        run: str,
        start: str,
        round_number: int,
        uploads: Mapping[str, torch.Tensor],
        members: Mapping[str, Hello],
        *,
        rate: float = 0.0,
        expected: float = 1.0,
    ) -> list[torch.Tensor]:
        """What every client is sent at the end of a round, where segments are averaged.

        Args:
            rate, expected: where gradients are summed, the learning rate, and of how many samples they are on average.

        Raises:
            RandomnessError: the dealer does not open the masks.
            ClientsUnseeded: it could, without these clients.
        """
        if self._schedule.combine != "average":
            return []
        names = tuple(uploads)
        length = len(uploads[names[0]])
        answer, tensors = self._ask_dealer(OpenMasks(run, start, round_number, names, length))
        if isinstance(answer, Unseeded) and answer.round == round_number and set(answer.clients) & set(names):
            raise ClientsUnseeded([name for name in names if name in answer.clients])
        if not isinstance(answer, MaskSum) or answer.round != round_number or len(tensors) != 1:
            raise MessageError("the dealer answered another request")
        mask_sum = expect_tensor(tensors[0], what="the sum of masks", dtype=torch.int64, shape=(length,))
        privacy = self._schedule.privacy
        weight = len(names) if privacy.by_client else sum(members[name].samples for name in names)
        if privacy.sums_steps:
            summed = combine(uploads.values(), mask_sum, total_weight=1)
            self.last = self._stepped(summed / expected, rate)
            return [self.last]
        average = combine(uploads.values(), mask_sum, total_weight=weight)
        self.last = self._with_momentum(average, members[names[0]].parameters)
        return [self.last]

    def _with_momentum(self, average: torch.Tensor, parameters: int) -> torch.Tensor:
        beta = self._schedule.server_momentum
        if not beta or self.last is None:
            return average
        change = (average - self.last)[:parameters]
        self._velocity = change if self._velocity is None else beta * self._velocity + change
        moved = average.clone()
        moved[:parameters] = self.last[:parameters] + self._velocity
        return moved

    def _stepped(self, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        if self._adam is None:
            self._start_adam(torch.zeros_like(gradient))
        assert self._adam is not None
        set_rate(self._adam, rate)
        self._way.grad = gradient
        self._adam.step()
        return self._way.detach().clone()

    def _start_adam(self, way: torch.Tensor) -> None:
        self._way = nn.Parameter(way.clone())
        self._adam = make_optimizer([self._way], self._schedule.learning_rate)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        held = {"combined.last": self.last, "combined.velocity": self._velocity}
        adam = {f"combined.{name}": one for name, one in optimizer_tensors(self._adam).items()}
        return {name: tensor for name, tensor in held.items() if tensor is not None} | adam

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.last = tensors.get("combined.last")
        self._velocity = tensors.get("combined.velocity")
        adam = {name.removeprefix("combined."): one for name, one in tensors.items() if name.startswith("combined.")}
        if self._schedule.privacy.sums_steps and self.last is not None:
            self._start_adam(self.last)
            restore_optimizer(self._adam, adam)


def upload_shape(tensors: Sequence[torch.Tensor], *, values: int, expected: bool) -> torch.Tensor | None:
    """An upload's vector, checked; None where none is due."""
    if len(tensors) != expected:
        raise MessageError(f"an upload has {int(expected)} vectors here, not {len(tensors)} tensors")
    if not tensors:
        return None
    return expect_tensor(tensors[0], what="the upload", dtype=torch.int64, shape=(values,))
