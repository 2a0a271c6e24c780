"""The client's half of a training step, what both halves share, and the book of an epoch."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.cut import check_batch
from splitsec.errors import ConfigError, MessageError, first_line
from splitsec.mpc.ring import check_range
from splitsec.privacy.activations import Guard, distance_correlation
from splitsec.privacy.rules import GradientNoise
from splitsec.training.data import Loader
from splitsec.training.randomness import OwnRandomness

if TYPE_CHECKING:
    from splitsec.privacy.record import PrivateStep


def segment_digest(*segments: nn.Module) -> str:
    """A fingerprint of segments' names, shapes and values: equal for clients that begin alike."""
    digest = hashlib.sha256()
    for name, tensor in (item for segment in segments for item in segment.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_optimizer(parameters: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Adam | None:
    """Adam over what is trained, None if nothing is. The fused one: for small segments the loop over parameters in
    Python would be a tenth of a step."""
    return torch.optim.Adam(parameters, lr=learning_rate, fused=True) if parameters else None


def set_rate(optimizer: torch.optim.Optimizer | None, rate: float) -> None:
    """Give an optimizer a learning rate."""
    for group in [] if optimizer is None else optimizer.param_groups:
        group["lr"] = rate


def train_alone(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    learning_rate: float = 2e-3,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda inputs: inputs,
    on_epoch: Callable[[int], None] = lambda _number: None,
) -> None:
    """Train a whole model in plain, in place; it is in eval mode afterwards.

    Args:
        change: what is done to the inputs of each batch.
        on_epoch: called with the number of each epoch, from 1 on, when it begins.
    """
    optimizer = make_optimizer([one for one in model.parameters() if one.requires_grad], learning_rate)
    model.train()
    for index in range(epochs * loader.per_epoch if optimizer is not None else 0):
        if index % loader.per_epoch == 0:
            on_epoch(index // loader.per_epoch + 1)
        inputs, labels, _ = loader.batch(index)
        assert labels is not None
        assert optimizer is not None
        optimizer.zero_grad()
        F.cross_entropy(model(change(inputs)), labels).backward()
        optimizer.step()
    model.eval()


@dataclass
class _Flight:
    """A batch that is on its way: its activation, the weights that made it, by name, and NoPeek's term."""

    activation: torch.Tensor = field(repr=False)
    weights: dict[str, torch.Tensor] = field(repr=False)
    leak: torch.Tensor | None = field(repr=False)


@dataclass(frozen=True)
class FrontPrivacy:
    """What protects a client's data in the steps of its front.

    Attributes:
        gradients: for differential privacy by record; a step then takes the sum of per-sample gradients, of which so
            many are `expected`. With the server's norms it is not taken here, and `take_sum` gives the sum.
        guard: clip and noise of the activation, see `Guard`; None for neither.
        nopeek: weight of the distance correlation.
    """

    gradients: GradientNoise | None = None
    expected: float = 0.0
    guard: tuple[float, float] | None = None
    nopeek: float = 0.0


class FrontTrainer:
    """A client's half of a training step; with a head, both ends of it.

    Several batches may be on their way at once: `forward` for the next may come before `backward` for the one before.
    Each batch's gradient is then computed with the weights that made its activation, and applied to those of now:
    weight stashing, D. Narayanan et al., "PipeDream", SOSP 2019, section 3.3.

    Args:
        in_flight: the most batches on their way at once.
        proximal: mu of the term mu/2 * |w - w0|^2 with w0 the weights at `begin_round`: T. Li et al., "Federated
            optimization in heterogeneous networks" (FedProx), MLSys 2020, section 3.2.
    """

    def __init__(
        self,
        front: nn.Module,
        *,
        learning_rate: float,
        cut: str,
        head: nn.Module | None = None,
        in_flight: int = 1,
        proximal: float = 0.0,
        randomness: OwnRandomness | None = None,
        privacy: FrontPrivacy | None = None,
    ) -> None:
        self.front = front
        self.head = head
        self._cut = cut
        modules = [front] if head is None else [front, head]
        self._trained = [one for module in modules for one in module.parameters() if one.requires_grad]
        self.optimizer = make_optimizer(self._trained, learning_rate)
        self._privacy = FrontPrivacy() if privacy is None else privacy
        self._sum: list[torch.Tensor] = []
        # Of each row's gradient in the last batch, where steps are summed elsewhere.
        self.norms = torch.empty(0)
        self._private: PrivateStep | None = None
        if self._privacy.gradients is not None and self.optimizer is not None:
            # Opacus takes a second to import, which processes that do without it need not spend.
            from splitsec.privacy.record import PrivateStep

            self._private = PrivateStep(modules, self.optimizer, self._privacy.gradients)
        self.guard = None
        if self._privacy.guard is not None:
            clip, noise = self._privacy.guard
            if self._private is not None and any(True for _ in front.parameters(recurse=False)):
                raise ConfigError(
                    "this front has parameters outside of its layers, whose gradient of a single record cannot be told "
                    "from that of a clipped activation: leave --activation-clip out, or put them into a layer"
                )
            self.guard = Guard(front, clip=clip, noise=noise)
        self._in_flight = in_flight
        self._proximal = proximal
        self._begun: list[torch.Tensor] = []
        self._flights: deque[_Flight] = deque()
        self.book = EpochBook()
        self.randomness = OwnRandomness(None) if randomness is None else randomness

    def begin_round(self) -> None:
        """The weights of now are those that FedProx holds to; batches on their way are forgotten."""
        self._flights.clear()
        self.book = EpochBook()
        if self._proximal:
            self._begun = [one.detach().clone() for one in self._trained]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The activation to send, float32; raises `RangeError` if it is not finite."""
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
                    name: one.detach().clone().requires_grad_()
                    for name, one in self.front.named_parameters()
                    if one.requires_grad
                }
                activation = torch.func.functional_call(self.front, weights, (images,))
        check_batch(activation, images, self._cut)
        activation = activation[:rows]
        check_range(activation, limit=float("inf"), what=f"the activation at cut '{self._cut}'")
        leak = None
        if self._privacy.nopeek and rows > 1:
            leak = self._privacy.nopeek * distance_correlation(images, activation)
        self._flights.append(_Flight(activation, weights, leak))
        return activation.detach().float()

    def turn(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The gradient of this client's loss by the tail's output, float32, which its head makes logits of.

        The loss is the mean over the samples; for differential privacy by record their sum.

        Raises:
            MessageError: the head cannot take the output, or a label has no logit.
        """
        assert self.head is not None
        self.head.train()
        taken = output.detach().to(next(self.head.parameters(), output).dtype).requires_grad_()
        if self._private is not None:
            self._private.probe(self.head, taken.detach())
        try:
            with self.randomness:
                logits = call_with_rows(self.head, taken)
        except (RuntimeError, ValueError) as error:
            raise MessageError(f"the head cannot take the tail's output: {first_line(error)}") from None
        check_logits(logits, labels)
        losses = F.cross_entropy(logits, labels, reduction="none")
        for parameter in self.head.parameters():
            parameter.grad = None
        (losses.mean() if self._private is None else losses.sum()).backward()
        correct = int((logits.detach().argmax(1) == labels).sum())
        self.book.add([(StepResult(mean_of(losses), correct, output), len(labels))])
        gradient = taken.grad
        assert gradient is not None
        return gradient.float()

    @property
    def due(self) -> torch.Size | None:
        """The shape of the activation whose gradient comes next; None if no batch is on its way."""
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
            if flight.leak is not None:
                flight.leak.backward(retain_graph=True)
            # A copy, since what comes from a socket need not be aligned, which slows convolutions by half.
            flight.activation.backward(gradient.to(flight.activation.dtype, copy=True))
        if self._private is not None:
            if norms is None:
                self._private.step(self._privacy.expected, rows=len(gradient))
            else:
                self.norms = self._private.norms(len(norms))
                self._sum = self._private.take_sum(norms**2 + self.norms**2)
            return
        own = dict(self.front.named_parameters()) if flight.weights else {}
        for name, one in flight.weights.items():
            own[name].grad = one.grad
        for parameter, begun in zip(self._trained, self._begun, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - begun, alpha=self._proximal)
        self.optimizer.step()

    def take_sum(self) -> dict[str, torch.Tensor]:
        """The sum of the last batch's clipped gradients, float64, by the names of parameters."""
        modules = [self.front] if self.head is None else [self.front, self.head]
        named = [name for module in modules for name, one in module.named_parameters() if one.requires_grad]
        return dict(zip(named, self._sum, strict=True))

    def close(self) -> None:
        """Take out of the segments what training alone needed."""
        if self._private is not None:
            self._private.close()


def call_with_rows(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """A module's output for a batch that may have no rows, which not every layer takes."""
    if len(batch):
        # A clone, so that a module that begins with an in-place layer does not write into a leaf.
        output: torch.Tensor = module(batch.clone())
        return output
    output = module(torch.cat([batch, batch.new_zeros(1, *batch.shape[1:])]))
    return output[:0]


def mean_of(losses: torch.Tensor) -> float:
    """The mean loss; 0 of no samples."""
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
