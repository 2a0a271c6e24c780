"""The server's half of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.errors import MessageError, first_line
from splitsec.randomness import OwnRandomness
from splitsec.settings.privacy import GradientNoise
from splitsec.training.step import StepResult, call_with_rows, check_labels, make_optimizer, mean_of

if TYPE_CHECKING:
    from splitsec.privacy.dp_sgd import PrivateStep


class TailTrainer:
    """The server's half: one step of the tail on the batches of all clients together.

    Attributes:
        expected: of each client, how many samples a step of it has on average, where they are sampled.
        norms: of each row's gradient at the tail, by client, where a step waits for those at the fronts.
    """

    def __init__(self, tail: nn.Module, *, learning_rate: float, randomness: OwnRandomness | None = None) -> None:
        self.tail = tail
        parameters = [parameter for parameter in tail.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(parameters, learning_rate)
        self.expected: Mapping[str, float] = {}
        self._private: PrivateStep | None = None
        self._by_sample = self._jointly = False
        self._waiting: dict[str, int] = {}
        self.norms: dict[str, torch.Tensor] = {}
        self._checked: dict[torch.Size, torch.Size] = {}
        self.randomness = OwnRandomness(None) if randomness is None else randomness
        self._step: tuple[torch.Tensor, torch.Tensor, list[int]] | None = None

    def protect(self, noise: GradientNoise, *, jointly: bool = False) -> None:
        """Learn with differential privacy by record.

        The gradients that clients send and get are from now on those of each sample's own loss.

        Args:
            jointly: clip the gradients of both sides together: a step is taken at the end of its round, when the
                clients have said what the norms of their sides are.
        """
        self._by_sample, self._jointly = True, jointly
        if self.optimizer is not None:
            from splitsec.privacy.dp_sgd import PrivateStep

            self._private = PrivateStep([self.tail], self.optimizer, noise)

    def check(self, activation: torch.Tensor, labels: torch.Tensor) -> None:
        """Try a client's first sample without learning from it.

        Raises:
            MessageError: the tail cannot take this activation, or a label has no output.
        """
        shape = self.check_activation(activation)
        if len(shape) != 2:
            raise MessageError(f"the tail returns shape {tuple(shape)}, expected one row of logits a sample")
        check_labels(labels, shape[1])

    def check_activation(self, activation: torch.Tensor) -> torch.Size:
        """Return the shape of the tail's output for one sample.

        Raises `MessageError` where it cannot take this activation.
        """
        if activation.shape[1:] in self._checked:
            return self._checked[activation.shape[1:]]
        was_training = self.tail.training
        self.tail.eval()
        try:
            with torch.no_grad():
                row = activation[:1].clone() if len(activation) else activation.new_zeros(1, *activation.shape[1:])
                output: torch.Tensor = self.tail(row)
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, activation.shape))
            raise MessageError(f"the tail cannot take an activation of shape {shape}: {first_line(error)}") from None
        finally:
            self.tail.train(was_training)
        self._checked[activation.shape[1:]] = output.shape
        return output.shape

    def forward(self, activations: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tail's output for the activations of a step, by client name, float32; `backward` is due next."""
        self.tail.train()
        counts = [len(activation) for activation in activations.values()]
        whole = torch.cat(list(activations.values())).requires_grad_()
        self._zero(whole)
        with self.randomness:
            output = call_with_rows(self.tail, whole)
        self._step = (whole, output, counts)
        return dict(zip(activations, output.detach().float().split(counts), strict=True))

    def backward(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Learn from the gradients of each client's own loss by its output; those by its activation."""
        assert self._step is not None
        whole, output, counts = self._step
        self._step = None
        # The tail's loss is the mean over all samples, a client's that over its own; by record both are sums.
        shares = [1.0 if self._by_sample else count / sum(counts) for count in counts]
        joined = torch.cat([gradient * share for gradient, share in zip(gradients.values(), shares, strict=True)])
        output.backward(joined.to(output.dtype))
        self._learn(dict(zip(gradients, counts, strict=True)))
        gradient = _gradient_of(whole)
        parts = [part / share for part, share in zip(gradient.split(counts), shares, strict=True)]
        return dict(zip(gradients, parts, strict=True))

    def step(self, batches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, StepResult]:
        """Learn from (activation, labels) by client name; the tail's loss is the mean over all samples."""
        self.tail.train()
        counts = [len(labels) for _, labels in batches.values()]
        activation = torch.cat([rows for rows, _ in batches.values()]).requires_grad_()
        labels = torch.cat([targets for _, targets in batches.values()])
        self._zero(activation)
        with self.randomness:
            logits = call_with_rows(self.tail, activation)
        losses = F.cross_entropy(logits, labels, reduction="none")
        (losses.sum() if self._by_sample else losses.mean()).backward()
        self._learn(dict(zip(batches, counts, strict=True)))
        correct = (logits.detach().argmax(1) == labels).split(counts)
        gradient = _gradient_of(activation)
        # Each client steps on its own mean loss, so undo the division by everybody's samples.
        shares = [1.0 if self._by_sample else sum(counts) / count for count in counts]
        parts = [part * share for part, share in zip(gradient.split(counts), shares, strict=True)]
        own = losses.detach().split(counts)
        return {
            name: StepResult(mean_of(own[index]), int(correct[index].sum()), parts[index])
            for index, name in enumerate(batches)
        }

    def _zero(self, batch: torch.Tensor) -> None:
        if self._private is not None:
            self._private.probe(self.tail, batch.detach())
            self._private.zero()
        elif self.optimizer is not None:
            self.optimizer.zero_grad()

    def _learn(self, counts: Mapping[str, int]) -> None:
        """Take a step with the gradients of a backward pass; `counts` are the samples of each client."""
        if self._jointly:
            rows = sum(counts.values())
            norms = torch.zeros(rows) if self._private is None else self._private.norms(rows)
            self._waiting = dict(counts)
            self.norms = dict(zip(counts, norms.split(list(counts.values())), strict=True))
        elif self._private is not None:
            self._private.step(sum(self.expected[name] for name in counts), rows=sum(counts.values()))
        elif self.optimizer is not None:
            self.optimizer.step()

    def begin_round(self, samples: Mapping[str, int]) -> None:
        """Begin a round of these clients."""

    def end_round(self, participants: Mapping[str, torch.Tensor | None]) -> None:
        """End a round, in which these clients' segments are combined.

        Args:
            participants: by name, the norms of each row's gradient at the front where the step waits for them.
        """
        if self._private is None or not self._waiting:
            return
        # The rows of who is gone do not count, at the tail as at the fronts.
        squares = [
            torch.full((count,), float("inf")) if norms is None else self.norms[name] ** 2 + norms**2
            for name, count in self._waiting.items()
            for norms in [participants.get(name)]
        ]
        self._private.step(sum(self.expected[name] for name in participants), torch.cat(squares))
        self._waiting, self.norms = {}, {}

    def close(self) -> None:
        """Take out of the tail what training alone needed."""
        if self._private is not None:
            self._private.close()


def _gradient_of(activation: torch.Tensor) -> torch.Tensor:
    """Return the gradient that came back for an activation; zeros if the tail detaches what it is given."""
    return torch.zeros_like(activation) if activation.grad is None else activation.grad
