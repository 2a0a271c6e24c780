"""The client's half of a training step, what both halves share, and the book of an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.cut import check_batch
from splitsec.errors import ConfigError, MessageError, first_line
from splitsec.mpc.ring import check_range
from splitsec.randomness import OwnRandomness
from splitsec.settings.privacy import GradientNoise
from splitsec.training.protections.base import Protection
from splitsec.training.step import (
    EpochBook,
    StepResult,
    call_with_rows,
    check_logits,
    make_optimizer,
    mean_of,
)

if TYPE_CHECKING:
    from splitsec.privacy.dp_sgd import PrivateStep


@dataclass
class _Flight:
    """A batch that is on its way: its activation, the weights that made it, by name, and what is added to its loss."""

    activation: torch.Tensor = field(repr=False)
    weights: dict[str, torch.Tensor] = field(repr=False)
    terms: list[torch.Tensor] = field(repr=False)


@dataclass(frozen=True)
class FrontPrivacy:
    """What protects a client's data in the steps of its front.

    Attributes:
        gradients: for differential privacy by record; a step then takes the sum of per-sample gradients. With the
            server's norms it is not taken here, and `take_sum` gives the sum.
        expected: the number of samples in a step on average.
        protections: of the activations.
    """

    gradients: GradientNoise | None = None
    expected: float = 0.0
    protections: tuple[Protection, ...] = ()


class FrontTrainer:
    """A client's half of a training step; with a head, both ends of it.

    Several batches may be on their way at once: `forward` for the next may come before `backward` for the one before.
    Each batch's gradient is then computed with the weights that made its activation, and applied to those of now:
    weight stashing, D. Narayanan et al., "PipeDream", SOSP 2019, section 3.3.

    Args:
        segments: the front and, of a U, the head.
        in_flight: the most batches on their way at once.
        proximal: mu of the term mu/2 * |w - w0|^2 with w0 the weights at `begin_round`: T. Li et al., "Federated
            optimization in heterogeneous networks" (FedProx), MLSys 2020, section 3.2.
    """

    def __init__(
        self,
        segments: Sequence[nn.Module],
        *,
        learning_rate: float,
        cut: str,
        in_flight: int = 1,
        proximal: float = 0.0,
        randomness: OwnRandomness | None = None,
        privacy: FrontPrivacy | None = None,
    ) -> None:
        self.front = segments[0]
        self.head = segments[1] if len(segments) == 2 else None
        self._cut = cut
        self._trained = [value for segment in segments for value in segment.parameters() if value.requires_grad]
        self.optimizer = make_optimizer(self._trained, learning_rate)
        self._privacy = FrontPrivacy() if privacy is None else privacy
        self._sum: list[torch.Tensor] = []
        # Of each row's gradient in the last batch, where steps are summed elsewhere.
        self.norms = torch.empty(0)
        self._private: PrivateStep | None = None
        if self._privacy.gradients is not None and self.optimizer is not None:
            # Opacus takes a second to import, which processes that do without it need not spend.
            from splitsec.privacy.dp_sgd import PrivateStep

            self._private = PrivateStep(list(segments), self.optimizer, self._privacy.gradients)
        for protection in self._privacy.protections:
            if protection.changes_output and self._private is not None:
                _check_layers(self.front)
            protection.attach(self.front)
        self._in_flight = in_flight
        self._proximal = proximal
        self._begun: list[torch.Tensor] = []
        self._flights: deque[_Flight] = deque()
        self.book = EpochBook()
        self.randomness = OwnRandomness(None) if randomness is None else randomness

    def begin_round(self) -> None:
        """Take the weights of now as those that FedProx holds to; batches on their way are forgotten."""
        self._flights.clear()
        self.book = EpochBook()
        if self._proximal:
            self._begun = [parameter.detach().clone() for parameter in self._trained]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the activation to send, float32; raises `RangeError` if it is not finite."""
        self.front.train()
        weights: dict[str, torch.Tensor] = {}
        if self._private is not None:
            self._private.zero()
        # Layers need not take a batch of no rows: one row in its place, which is cut away again.
        rows, images = len(images), images if len(images) else images.new_zeros(1, *images.shape[1:])
        if self._private is not None:
            self._private.probe(self.front, images[:rows])
        with self.randomness:
            if self._in_flight == 1:
                activation: torch.Tensor = self.front(images)
            else:
                weights = {
                    name: parameter.detach().clone().requires_grad_()
                    for name, parameter in self.front.named_parameters()
                    if parameter.requires_grad
                }
                activation = torch.func.functional_call(self.front, weights, (images,))
        check_batch(activation, images, self._cut)
        activation = activation[:rows]
        check_range(activation, limit=float("inf"), what=f"the activation at cut '{self._cut}'")
        terms = [protection.term(images[:rows], activation) for protection in self._privacy.protections]
        flight = _Flight(activation, weights, [term for term in terms if term is not None])
        if flight.terms and self._private is not None:
            raise ConfigError(
                "a protection that adds to a batch's loss leaves no gradient of one record alone: use it without a "
                "budget by record"
            )
        self._flights.append(flight)
        return activation.detach().float()

    def turn(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the gradient of this client's loss with respect to the tail's output.

        Float32, which its head makes logits of.

        The loss is the mean over the samples; for differential privacy by record their sum.

        Raises:
            MessageError: the head cannot take the output, or a label has no logit.
        """
        assert self.head is not None
        self.head.train()
        inputs = output.detach().to(next(self.head.parameters(), output).dtype).requires_grad_()
        if self._private is not None:
            self._private.probe(self.head, inputs.detach())
        try:
            with self.randomness:
                logits = call_with_rows(self.head, inputs)
        except (RuntimeError, ValueError) as error:
            raise MessageError(f"the head cannot take the tail's output: {first_line(error)}") from None
        check_logits(logits, labels)
        losses = F.cross_entropy(logits, labels, reduction="none")
        for parameter in self.head.parameters():
            parameter.grad = None
        (losses.mean() if self._private is None else losses.sum()).backward()
        correct = int((logits.detach().argmax(1) == labels).sum())
        self.book.add([(StepResult(mean_of(losses), correct, output), len(labels))])
        gradient = inputs.grad
        assert gradient is not None
        return gradient.float()

    @property
    def due(self) -> torch.Size | None:
        """Return the shape of the activation whose gradient comes next; None if no batch is on its way."""
        return self._flights[0].activation.shape if self._flights else None

    def backward(self, gradient: torch.Tensor, norms: torch.Tensor | None = None) -> None:
        """Apply the gradient that came back for the oldest activation on its way.

        Args:
            norms: where steps are summed elsewhere, those of each row's gradient at the server, float32 (rows,).
        """
        if gradient.shape != self.due:
            raise MessageError("a gradient that fits no activation")
        flight = self._flights.popleft()
        if self.optimizer is None:
            self.norms = torch.zeros(gradient.shape[:1])
            return
        for parameter in self.front.parameters():
            parameter.grad = None
        if flight.activation.requires_grad:
            for term in flight.terms:
                term.backward(retain_graph=True)
            # A copy, since what comes from a socket need not be aligned, which slows convolutions by half.
            flight.activation.backward(gradient.to(flight.activation.dtype, copy=True))
        if self._private is None:
            self._step(flight.weights)
        elif norms is None:
            self._private.step(self._privacy.expected, rows=len(gradient))
        else:
            self.norms = self._private.norms(len(norms))
            self._sum = self._private.take_sum(norms**2 + self.norms**2)

    def _step(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Step with the gradients of the weights that made an activation, where these are not the front's own."""
        assert self.optimizer is not None
        own = dict(self.front.named_parameters()) if weights else {}
        for name, weight in weights.items():
            own[name].grad = weight.grad
        for parameter, begun in zip(self._trained, self._begun, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - begun, alpha=self._proximal)
        self.optimizer.step()

    def take_sum(self) -> dict[str, torch.Tensor]:
        """Return the sum of the last batch's clipped gradients, float64, by the names of parameters."""
        modules = [self.front] if self.head is None else [self.front, self.head]
        named = [name for module in modules for name, parameter in module.named_parameters() if parameter.requires_grad]
        return dict(zip(named, self._sum, strict=True))

    def close(self) -> None:
        """Take out of the segments what training alone needed."""
        if self._private is not None:
            self._private.close()


def _check_layers(front: nn.Module) -> None:
    """Raise `ConfigError` for a front with parameters outside of its layers, whose output a protection changes."""
    if any(True for _ in front.parameters(recurse=False)):
        raise ConfigError(
            "this front has parameters outside of its layers, whose gradient of a single record cannot be told from "
            "that of a clipped activation: leave --activation-clip out, or put them into a layer"
        )
