"""What a layout is, and the queues of batches that every layout's steps have at the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from splitsec.cut import is_u
from splitsec.errors import MessageError, first_line
from splitsec.mpc.ring import check_range
from splitsec.registry import Registry
from splitsec.settings.run import RunSettings
from splitsec.training.compression import Coder, coders
from splitsec.training.front import FrontTrainer
from splitsec.training.messages import Batch, Gradient, HeadGradient, Hello
from splitsec.training.step import EpochBook, StepResult
from splitsec.training.tail import TailTrainer
from splitsec.transport import NamedTensors, expect_shape
from splitsec.transport.outgoing import Outgoing


@dataclass(frozen=True)
class Arrived:
    """A client's checked batch: its message, activation, labels (int64) and row numbers, where they are sent."""

    body: Batch
    tensor: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(repr=False)
    rows: torch.Tensor | None = field(repr=False)


class StepGatherer(ABC):
    """The server's half of a layout: gather the batches of one step, learn from them, and answer.

    Each client has a queue, as long as it may have batches on their way; a step takes the first of each.

    Attributes:
        labelled: whether every client's batch has labels, or none has; None where it depends on the client.
        book: loss and correct labels of the round so far, where the server knows them.
        samples: samples learned from in the round.
    """

    labelled: ClassVar[bool | None] = None

    def __init__(self, trainer: TailTrainer, *, cut: str, settings: RunSettings) -> None:
        self.book = EpochBook()
        self.samples = 0
        self._trainer = trainer
        self._cut = cut
        self._settings = settings
        self._queues: dict[str, deque[Arrived]] = {}
        self._samples: Mapping[str, int] = {}
        self._coders: dict[str, tuple[Coder, Coder]] = {}

    def begin(self, samples: Mapping[str, int]) -> None:
        """Forget what is on its way and begin a round with these clients and their numbers of samples."""
        self._queues = {name: deque() for name in samples}
        self._samples = samples
        self.book = EpochBook()
        self.samples = 0
        for name, count in samples.items():
            if name not in self._coders:
                self._coders[name] = coders(self._settings.compression, count)

    def drop(self, name: str) -> None:
        """Forget a client that is gone; should it come back, both ends begin with nothing remembered."""
        self._queues.pop(name, None)
        self._coders.pop(name, None)

    def has(self, name: str) -> bool:
        """Return whether the client has sent something that waits for others."""
        return bool(self._queues.get(name))

    def owes(self, name: str) -> bool:
        """Return whether a client's batch is unanswered, or the client owes its part of a step that has begun."""
        return self.has(name)

    def add(self, name: str, body: Batch | HeadGradient, tensors: NamedTensors) -> None:
        """Check a client's message, and keep it until its step.

        Raises:
            MessageError, RangeError: it cannot be learned from; nothing has changed.
        """
        if not isinstance(body, Batch):
            raise MessageError(f"{type(body).__name__} was not due")
        has_labels = tensors.get("labels") is not None
        if self.labelled is not None and self.labelled != has_labels:
            what = "were not due, since they stay at the client" if has_labels else "is missing"
            raise MessageError(f"Batch: labels {what}")
        arrived = self._arrived(name, body, tensors)
        self._check_batch(arrived)
        self._keep(name, arrived)

    @abstractmethod
    def _check_batch(self, arrived: Arrived) -> None:
        """Raise `MessageError` for a batch that the tail cannot learn from."""

    def step_when_complete(self, active: Collection[str]) -> Iterator[Outgoing]:
        """Learn as long as every client in `active` has sent its batch; give each answer as soon as it is computed.

        Raises:
            MessageError: the tail cannot learn from this step.
        """
        while active and all(self._queues.get(name) for name in active):
            yield from self.learn_from(active)

    def learn_from(self, names: Collection[str]) -> Iterator[Outgoing]:
        """Learn from the first batch of each of these clients, which must be there; give the answers.

        Raises:
            MessageError: the tail cannot learn from this step.
        """
        waiting = {name: self._queues[name].popleft() for name in names}
        try:
            yield from self._answers(waiting, self._step(waiting))
        except (RuntimeError, ValueError) as error:
            raise MessageError(f"the tail cannot learn from this step: {first_line(error)}") from error

    @abstractmethod
    def _step(self, waiting: dict[str, Arrived]) -> Iterator[tuple[str, StepResult]]:
        """Learn from a batch of each client; give each client's result as soon as it is computed."""

    def _answers(self, waiting: Mapping[str, Arrived], results: Iterable[tuple[str, StepResult]]) -> Iterator[Outgoing]:
        for name, result in results:
            to, gradient = waiting[name], result.gradient
            rows = torch.arange(len(gradient)) if to.rows is None else to.rows
            coded = self._coders[name][1].pack(gradient, rows)
            tensors = {"gradient": coded, "row_norms": self._trainer.norms.get(name)}
            yield Outgoing(name, Gradient(to.body.round, to.body.step, result.loss, result.correct), tensors)

    def _keep(self, name: str, arrived: Arrived) -> None:
        if len(self._queues[name]) + self._begun_of(name) >= self._settings.batches_in_flight:
            raise MessageError(f"{name} has {self._settings.batches_in_flight} batches on their way and must wait")
        self._queues[name].append(arrived)

    @property
    def _needs_features(self) -> bool:
        """Return whether an activation must have features."""
        return True

    def _begun_of(self, _name: str) -> int:
        """Return how many of a client's batches are in a step that has begun."""
        return 0

    def _arrived(self, name: str, body: Batch, tensors: NamedTensors) -> Arrived:
        coded: list[torch.Tensor] = tensors["activation"]
        # Where rows are sampled one by one, there may be none or all of them.
        sampled = self._settings.privacy.by_record
        least, most = (0, self._samples.get(name, 0)) if sampled else (1, self._settings.batch_size)
        for tensor in coded:
            # Before anything is remembered of it.
            if not least <= len(tensor) <= most or (len(tensor) and not tensor.numel() and self._needs_features):
                raise MessageError(f"the activation has shape {tuple(tensor.shape)}; expected {least} to {most} rows")
            if tensor.is_floating_point():
                check_range(tensor, limit=float("inf"), what=f"the activation of {name} at cut '{self._cut}'")
        activation = self._coders[name][0].unpack(coded, (len(coded[0]), *body.shape))
        expect_shape(activation, [None, *body.shape], what="the activation")
        self._check_shape(name, activation)
        return Arrived(body, activation, tensors.get("labels"), self._coders[name][0].rows_of(coded))

    def _check_shape(self, name: str, activation: torch.Tensor) -> None:
        others = [arrived for other, queue in self._queues.items() if other != name for arrived in queue]
        if others:
            expect_shape(activation, [None, *others[0].tensor.shape[1:]], what="the activation")


class Participant:
    """The client's half of a layout: what a batch sends beside its activation, and how answers are used."""

    def __init__(self, trainer: FrontTrainer) -> None:
        self._trainer = trainer

    def labels_to_send(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        """Return the labels (int64) that a batch sends: those of its rows where the server learns from them."""
        return labels

    def answer(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the gradient of this client's loss with respect to the tail's output, float32.

        Raises:
            MessageError: the tail's output is not for this client.
        """
        raise MessageError("Output was not due")

    def note(self, result: StepResult) -> None:
        """Note what the server says of a step."""
        self._trainer.book.add([(result, len(result.gradient))])

    def figures(self, *, silent: bool) -> list[float]:
        """Return the figures of this round that travel under the upload's mask; zeros where they must not be said."""
        return []


class Layout:
    """Who holds rows, columns and labels.

    Attributes:
        gatherer: the server's half.
        participant: a client's half.
        figures: how many figures of a client's batches travel under the mask of its upload, since the server must not
            know them of a single client.
        aligns_rows: whether clients find their common rows first. Then all of them must be there all the time.
    """

    gatherer: ClassVar[type[StepGatherer]]
    participant: ClassVar[type[Participant]] = Participant
    aligns_rows: ClassVar[bool] = False
    figures: ClassVar[int] = 0

    def check_hello(self, name: str, hello: Hello, others: Mapping[str, Hello], settings: RunSettings) -> None:
        """Raise `RefusedError` for a client that does not fit the others in this layout."""

    def check_members(self, members: Mapping[str, Hello], settings: RunSettings, trainer: TailTrainer) -> None:
        """Raise `SplitsecError` where all clients are there and cannot be trained together."""

    def check_return(self, *, finished: bool) -> None:
        """Raise `RefusedError` where a client cannot come back into a run that has begun."""


def times(shape: Sequence[int]) -> str:
    """Return a shape as people write it, such as 3x8x8."""
    return "x".join(map(str, shape))


LAYOUTS: Registry[Layout] = Registry("layout", package="splitsec.training.layouts")


def layout_of(settings: RunSettings, cut: str) -> Layout:
    """Return the layout of a run.

    Raises:
        ConfigError: it is one of another package, which is not here.
    """
    if settings.join is not None:
        return LAYOUTS.get("vertical")
    if settings.layout is None or settings.in_parts:
        return LAYOUTS.get("u" if is_u(cut) else "horizontal")
    return LAYOUTS.get(settings.layout)
