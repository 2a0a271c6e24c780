"""One step of split training at each side of the cut, and the server's book of an epoch."""

from __future__ import annotations

import hashlib
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
from splitsec.privacy.activations import Guard, distance_correlation
from splitsec.privacy.rules import GradientNoise
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
        self.book.add([(StepResult(_mean(losses), correct, output), len(labels))])
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


def _mean(losses: torch.Tensor) -> float:
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
        """Learn with differential privacy by record. The gradients that clients send and get are from now on those of
        each sample's own loss.

        Args:
            jointly: clip the gradients of both sides together: a step is taken at the end of its round, when the
                clients have said what the norms of their sides are.
        """
        self._by_sample, self._jointly = True, jointly
        if self.optimizer is not None:
            from splitsec.privacy.record import PrivateStep

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
        """The shape of the tail's output for one sample; raises `MessageError` where it cannot take this activation."""
        if activation.shape[1:] in self._checked:
            return self._checked[activation.shape[1:]]
        was_training = self.tail.training
        self.tail.eval()
        try:
            with torch.no_grad():
                one = activation[:1].clone() if len(activation) else activation.new_zeros(1, *activation.shape[1:])
                output: torch.Tensor = self.tail(one)
        except (RuntimeError, ValueError) as error:
            shape = "x".join(map(str, activation.shape))
            raise MessageError(f"the tail cannot take an activation of shape {shape}: {first_line(error)}") from None
        finally:
            self.tail.train(was_training)
        self._checked[activation.shape[1:]] = output.shape
        return output.shape

    def forward(self, activations: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tail's output for the activations of a step, by client name, float32; `backward` is due next."""
        self.tail.train()
        counts = [len(one) for one in activations.values()]
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
        joined = torch.cat([one * share for one, share in zip(gradients.values(), shares, strict=True)])
        output.backward(joined.to(output.dtype))
        self._learn(dict(zip(gradients, counts, strict=True)))
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
        self._zero(activation)
        with self.randomness:
            logits = call_with_rows(self.tail, activation)
        losses = F.cross_entropy(logits, labels, reduction="none")
        (losses.sum() if self._by_sample else losses.mean()).backward()
        self._learn(dict(zip(batches, counts, strict=True)))
        correct = (logits.detach().argmax(1) == labels).split(counts)
        gradient = activation.grad
        assert gradient is not None
        # Each client steps on its own mean loss, so undo the division by everybody's samples.
        shares = [1.0 if self._by_sample else sum(counts) / count for count in counts]
        parts = [part * share for part, share in zip(gradient.split(counts), shares, strict=True)]
        own = losses.detach().split(counts)
        return {
            name: StepResult(_mean(own[index]), int(correct[index].sum()), parts[index])
            for index, name in enumerate(batches)
        }

    def _zero(self, batch: torch.Tensor) -> None:
        if self._private is not None:
            self._private.probe(self.tail, batch.detach())
            self._private.zero()
        elif self.optimizer is not None:
            self.optimizer.zero_grad()

    def _learn(self, counts: Mapping[str, int]) -> None:
        """Step by the gradients that a backward pass of so many samples of each client has left."""
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
        """A round of these clients begins."""

    def end_round(self, participants: Mapping[str, torch.Tensor | None]) -> None:
        """A round is over, and these clients' segments are combined.

        Args:
            participants: by name, the norms of each row's gradient at the front where the step waits for them.
        """
        if self._private is None or not self._waiting:
            return
        # The rows of who is gone do not count, at the tail as at the fronts.
        squares = [
            torch.full((count,), float("inf")) if given is None else self.norms[name] ** 2 + given**2
            for name, count in self._waiting.items()
            for given in [participants.get(name)]
        ]
        self._private.step(sum(self.expected[name] for name in participants), torch.cat(squares))
        self._waiting, self.norms = {}, {}

    def close(self) -> None:
        """Take out of the tail what training alone needed."""
        if self._private is not None:
            self._private.close()


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
