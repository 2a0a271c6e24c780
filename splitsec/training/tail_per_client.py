"""The tail where differential privacy is by client: each client trains a copy, and what they learned is summed.

With one tail that learns from all clients in every step, what a client sends would show in what the others do next.
Here it shows at the end of a round alone, in a sum of clipped updates with noise. A copy of the server's segment for
each client: C. Thapa et al., "SplitFed: when federated learning meets split learning", AAAI 2022, SplitFedV1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from splitsec.privacy.dp_updates import ServerNoise, clip_update
from splitsec.randomness import OwnRandomness
from splitsec.settings.privacy import GradientNoise
from splitsec.training.step import StepResult
from splitsec.training.tail import TailTrainer


class ClientTails(TailTrainer):
    """Trains a copy of the tail a client; `end_round` makes one tail of them.

    An optimizer's state stays with its copy from round to round: it knows that client's data alone.

    """

    def __init__(self, tail: nn.Module, *, learning_rate: float, randomness: OwnRandomness | None = None) -> None:
        super().__init__(tail, learning_rate=learning_rate, randomness=randomness)
        self._rate = learning_rate
        self._clip = 0.0
        self._noise: ServerNoise | None = None
        self._copies: dict[str, TailTrainer] = {}

    def protect(self, noise: GradientNoise, *, jointly: bool = False) -> None:
        """Clip each client's update of the tail, and add noise to their sum."""
        self._clip = noise.clip
        self._noise = ServerNoise(noise)

    def begin_round(self, samples: Mapping[str, int]) -> None:
        for name in samples:
            if name not in self._copies:
                tail = copy.deepcopy(self.tail)
                self._copies[name] = TailTrainer(tail, learning_rate=self._rate, randomness=self.randomness)
            self._copies[name].tail.load_state_dict(self.tail.state_dict())
            optimizer = self._copies[name].optimizer
            if optimizer is not None and self.optimizer is not None:
                for group, newest in zip(optimizer.param_groups, self.optimizer.param_groups, strict=True):
                    group["lr"] = newest["lr"]

    def forward(self, activations: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: self._copies[name].forward({name: activation})[name] for name, activation in activations.items()}

    def backward(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: self._copies[name].backward({name: gradient})[name] for name, gradient in gradients.items()}

    def step(self, batches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, StepResult]:
        return {name: self._copies[name].step({name: batch})[name] for name, batch in batches.items()}

    def end_round(self, participants: Mapping[str, torch.Tensor | None]) -> None:
        """Move the tail by the noisy mean of the participants' clipped updates."""
        trained = _trained(self.tail)
        if not trained or not participants:
            return
        assert self._noise is not None
        begun = _flat(trained)
        updates = [clip_update(_flat(_trained(self._copies[name].tail)) - begun, self._clip) for name in participants]
        moved = begun + self._noise.add(torch.stack(updates).sum(0)) / len(participants)
        parts = moved.split([parameter.numel() for parameter in trained])
        with torch.no_grad():
            for parameter, part in zip(trained, parts, strict=True):
                parameter.copy_(part.view_as(parameter))


def _trained(tail: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in tail.parameters() if parameter.requires_grad]


def _flat(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in parameters])
