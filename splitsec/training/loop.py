"""One step of split training at each side of the cut, and the server's book of an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.cut import check_batch
from splitsec.errors import MessageError
from splitsec.mpc.ring import check_range


def segment_digest(*segments: nn.Module) -> str:
    """A fingerprint of segments' names, shapes and values: equal for clients that begin alike."""
    digest = hashlib.sha256()
    for name, tensor in (item for segment in segments for item in segment.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FrontTrainer:
    """A client's half of a training step; with a head, both ends of it."""

    def __init__(self, front: nn.Module, *, learning_rate: float, cut: str, head: nn.Module | None = None) -> None:
        self.front = front
        self.head = head
        self._cut = cut
        modules = [front] if head is None else [front, head]
        parameters = [one for module in modules for one in module.parameters() if one.requires_grad]
        self._optimizer = torch.optim.Adam(parameters, lr=learning_rate) if parameters else None
        self._activation: torch.Tensor | None = None
        self._book = EpochBook()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The activation to send, float32; raises `RangeError` if it is not finite."""
        self.front.train()
        self._activation = self.front(images)
        check_batch(self._activation, images, self._cut)
        check_range(self._activation, limit=float("inf"), what=f"the activation at cut '{self._cut}'")
        if self._optimizer is not None:
            self._optimizer.zero_grad()
        return self._activation.detach().float()

    def turn(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The gradient of this client's mean loss by the tail's output, float32, which its head makes logits of.

        Raises:
            MessageError: the head cannot take the output, or a label has no logit.
        """
        assert self.head is not None
        self.head.train()
        taken = output.detach().to(next(self.head.parameters(), output).dtype).requires_grad_()
        try:
            # A clone, so that a head that begins with an in-place layer does not write into a leaf.
            logits = self.head(taken.clone())
        except (RuntimeError, ValueError) as error:
            raise MessageError(f"the head cannot take the tail's output: {str(error).splitlines()[0]}") from None
        check_logits(logits, labels)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        correct = int((logits.detach().argmax(1) == labels).sum())
        self._book.add([(StepResult(loss.item(), correct, output), len(labels))])
        gradient = taken.grad
        assert gradient is not None
        return gradient.float()

    def backward(self, gradient: torch.Tensor) -> None:
        """Apply the gradient that came back for the last activation."""
        if self._activation is None or gradient.shape != self._activation.shape:
            raise MessageError("a gradient that fits no activation")
        if self._optimizer is not None:
            if self._activation.requires_grad:
                self._activation.backward(gradient.to(self._activation.dtype))
            self._optimizer.step()
        self._activation = None

    def take_means(self) -> tuple[float, float]:
        """Mean loss and accuracy of this client's own batches since the last call, where it has a head."""
        book, self._book = self._book, EpochBook()
        return book.loss, book.accuracy


def check_logits(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise `MessageError` unless there is one row of logits a sample, and a logit for every label."""
    if logits.dim() != 2:
        raise MessageError(f"the tail returns shape {tuple(logits.shape)}, expected one row of logits a sample")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise MessageError(
            f"labels from {int(labels.min())} to {int(labels.max())}, but the model has {logits.shape[1]} classes"
        )


@dataclass(frozen=True)
class StepResult:
    """What one client gets back from a step: its mean loss, its correct labels, the gradient of its mean loss."""

    loss: float
    correct: int
    gradient: torch.Tensor = field(repr=False)


class TailTrainer:
    """The server's half: one step of the tail on the batches of all clients together."""

    def __init__(self, tail: nn.Module, *, learning_rate: float) -> None:
        self.tail = tail
        parameters = [parameter for parameter in tail.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(parameters, lr=learning_rate) if parameters else None
        self._step: tuple[torch.Tensor, torch.Tensor, list[int]] | None = None

    def check(self, activation: torch.Tensor, labels: torch.Tensor) -> None:
        """Try a client's first sample without learning from it.

        Raises:
            MessageError: the tail cannot take this activation, or a label has no output.
        """
        check_logits(self.check_activation(activation), labels)

    def check_activation(self, activation: torch.Tensor) -> torch.Tensor:
        """The tail's output for the first sample; raises `MessageError` where it cannot take this activation."""
        was_training = self.tail.training
        self.tail.eval()
        try:
            with torch.no_grad():
                output: torch.Tensor = self.tail(activation[:1].clone())
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, activation.shape))
            raise MessageError(
                f"the tail cannot take an activation of shape {shape}: {str(error).splitlines()[0]}"
            ) from None
        finally:
            self.tail.train(was_training)
        return output

    def forward(self, activations: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tail's output for the activations of a step, by client name, float32; `backward` is due next."""
        self.tail.train()
        counts = [len(one) for one in activations.values()]
        whole = torch.cat(list(activations.values())).requires_grad_()
        output = self.tail(whole.clone())
        self._step = (whole, output, counts)
        return dict(zip(activations, output.detach().float().split(counts), strict=True))

    def backward(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Learn from the gradients of each client's own mean loss by its output; those by its activation."""
        assert self._step is not None
        whole, output, counts = self._step
        self._step = None
        # The tail's loss is the mean over all samples, a client's that over its own.
        shares = [count / sum(counts) for count in counts]
        joined = torch.cat([one * share for one, share in zip(gradients.values(), shares, strict=True)])
        if self._optimizer is not None:
            self._optimizer.zero_grad()
        output.backward(joined.to(output.dtype))
        if self._optimizer is not None:
            self._optimizer.step()
        gradient = whole.grad
        assert gradient is not None
        parts = [part / share for part, share in zip(gradient.split(counts), shares, strict=True)]
        return dict(zip(gradients, parts, strict=True))

    def step(self, batches: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, StepResult]:
        """Learn from (activation, labels) by client name; the tail's loss is the mean over all samples."""
        self.tail.train()
        counts = [len(labels) for _, labels in batches.values()]
        activation = torch.cat([one for one, _ in batches.values()]).requires_grad_()
        labels = torch.cat([one for _, one in batches.values()])
        # A clone, so that a tail that begins with an in-place layer does not write into a leaf.
        logits = self.tail(activation.clone())
        losses = F.cross_entropy(logits, labels, reduction="none")
        if self._optimizer is not None:
            self._optimizer.zero_grad()
        losses.mean().backward()
        if self._optimizer is not None:
            self._optimizer.step()
        correct = (logits.detach().argmax(1) == labels).split(counts)
        gradient = activation.grad
        assert gradient is not None
        # Each client steps on its own mean loss, so undo the division by everybody's samples.
        parts = [part * (sum(counts) / count) for part, count in zip(gradient.split(counts), counts, strict=True)]
        own = losses.detach().split(counts)
        return {
            name: StepResult(own[index].mean().item(), int(correct[index].sum()), parts[index])
            for index, name in enumerate(batches)
        }


@dataclass
class EpochBook:
    """Running loss and accuracy of one epoch."""

    samples: int = 0
    loss_sum: float = 0.0
    correct: int = 0

    def add(self, results: Sequence[tuple[StepResult, int]]) -> None:
        for result, count in results:
            self.samples += count
            self.loss_sum += result.loss * count
            self.correct += result.correct

    @property
    def loss(self) -> float:
        return self.loss_sum / max(1, self.samples)

    @property
    def accuracy(self) -> float:
        return self.correct / max(1, self.samples)
