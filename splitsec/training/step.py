"""What both halves of a training step use: optimizers, checks of labels, results and running figures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from splitsec.errors import MessageError


def segment_digest(*segments: nn.Module) -> str:
    """Return a fingerprint of segments' names, shapes and values: equal for clients that begin alike."""
    digest = hashlib.sha256()
    for name, tensor in (item for segment in segments for item in segment.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_optimizer(parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Adam | None:
    """Adam over what is trained, None if nothing is.

    The fused one: for small segments the loop over parameters in Python would be a tenth of a step.
    """
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True) if parameters else None


def set_rate(optimizer: torch.optim.Optimizer | None, rate: float) -> None:
    """Give an optimizer a learning rate."""
    for group in [] if optimizer is None else optimizer.param_groups:
        group["lr"] = rate


def call_with_rows(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return a module's output for a batch that may have no rows, which not every layer takes."""
    if len(batch):
        # A clone, so that a module that begins with an in-place layer does not write into a leaf.
        output: torch.Tensor = module(batch.clone())
        return output
    output = module(torch.cat([batch, batch.new_zeros(1, *batch.shape[1:])]))
    return output[:0]


def mean_of(losses: torch.Tensor) -> float:
    """Return the mean loss; 0 of no samples."""
    return losses.sum().item() / max(1, len(losses))


def check_logits(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise `MessageError` unless there is one row of logits a sample, and a logit for every label."""
    if logits.dim() != 2:
        raise MessageError(f"the tail returns shape {tuple(logits.shape)}, expected one row of logits a sample")
    check_labels(labels, logits.shape[1])


def check_labels(labels: torch.Tensor, classes: int) -> None:
    """Raise `MessageError` unless every label is one of the model's classes."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise MessageError(
            f"labels from {int(labels.min())} to {int(labels.max())}, but the model has {classes} classes"
        )


@dataclass(frozen=True)
class StepResult:
    """What one client gets back from a step: its mean loss, its correct labels, the gradient of its mean loss."""

    loss: float
    correct: int
    gradient: torch.Tensor = field(repr=False)


@dataclass
class EpochBook:
    """Running loss and accuracy of one epoch."""

    samples: int = 0
    loss_sum: float = 0.0
    correct: int = 0

    def add(self, results: Sequence[tuple[StepResult, int]]) -> None:
        """Count the results of a step, each with its number of rows."""
        for result, count in results:
            self.samples += count
            self.loss_sum += result.loss * count
            self.correct += result.correct

    @property
    def loss(self) -> float:
        """Return the mean loss of a row so far; 0 before the first."""
        return self.loss_sum / max(1, self.samples)

    @property
    def accuracy(self) -> float:
        """Return the share of rows that were classified right so far; 0 before the first."""
        return self.correct / max(1, self.samples)
