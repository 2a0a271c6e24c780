"""The steps of training at the server: gathers what the clients of one step send, and answers them together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from splitsec.errors import MessageError, first_line
from splitsec.mpc.ring import check_range
from splitsec.training.compression import ActivationCoder, GradientCoder
from splitsec.training.loop import EpochBook
from splitsec.training.messages import Batch, Gradient, HeadGradient, Output, ServerBody
from splitsec.training.schedule import Schedule
from splitsec.training.tail import TailTrainer
from splitsec.training.vertical import joined
from splitsec.transport import expect_tensor

Send = Callable[[str, ServerBody, Sequence[torch.Tensor]], None]


@dataclass(frozen=True)
class Arrived:
    """What a client sent for one step, checked."""

    body: Batch | HeadGradient
    tensor: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(repr=False)
    rows: torch.Tensor | None = field(repr=False)


class Steps:
    """Steps with labels: every client sends an activation and its labels, and gets a gradient.

    Each client has a queue, as long as it may have batches on their way; a step takes the first of each.

    Attributes:
        book: loss and correct labels of the round so far, where the server knows them.
        samples: how many samples it has learned from in the round.

    Args:
        send: sends an answer to a client.
    """

    def __init__(self, trainer: TailTrainer, *, cut: str, schedule: Schedule, send: Send) -> None:
        self.book = EpochBook()
        self.samples = 0
        self._trainer = trainer
        self._cut = cut
        self._schedule = schedule
        self._send = send
        self._queues: dict[str, deque[Arrived]] = {}
        self._samples: Mapping[str, int] = {}
        self._coders: dict[str, tuple[ActivationCoder, GradientCoder]] = {}

    def begin(self, samples: Mapping[str, int]) -> None:
        """Forget what is on its way and begin a round with these clients and their numbers of samples."""
        self._queues = {name: deque() for name in samples}
        self._samples = samples
        self.book = EpochBook()
        self.samples = 0
        for name, count in samples.items():
            if name not in self._coders:
                kind = self._schedule.compress
                self._coders[name] = ActivationCoder(kind, count), GradientCoder(kind, count)

    def drop(self, name: str) -> None:
        """Forget a client that is gone; should it come back, both ends begin with nothing remembered."""
        self._queues.pop(name, None)
        self._coders.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether the client has sent something that waits for others."""
        return bool(self._queues.get(name))

    def owes(self, name: str) -> bool:
        """Whether a client has sent what the server has not answered, or owes its part of a step that it began."""
        return self.has(name)

    def take(self, name: str, body: Batch | HeadGradient, tensors: Sequence[torch.Tensor]) -> None:
        """Check what a client sends, and keep it until its step.

        Raises:
            MessageError, RangeError: it cannot be learned from; nothing has changed.
        """
        if not isinstance(body, Batch):
            raise MessageError(f"{type(body).__name__} was not due")
        if len(tensors) < 2:
            raise MessageError(f"a batch has an activation and labels, not {len(tensors)} tensors")
        arrived = self._activation(name, body, tensors[:-1], tensors[-1])
        assert arrived.labels is not None
        self._trainer.check(arrived.tensor, arrived.labels)
        self._keep(name, arrived)

    def step_when_complete(self, active: Collection[str]) -> None:
        """Learn and answer as long as everybody who is `active` has sent.

        Raises:
            MessageError: the tail cannot learn from this step.
        """
        while active and all(self._queues.get(name) for name in active):
            waiting = {name: self._queues[name].popleft() for name in active}
            try:
                self._step(waiting)
            except (RuntimeError, ValueError) as error:
                raise MessageError(f"the tail cannot learn from this step: {first_line(error)}") from error

    def _keep(self, name: str, arrived: Arrived) -> None:
        if len(self._queues[name]) + self._begun_of(name) >= self._schedule.in_flight:
            raise MessageError(f"{name} has {self._schedule.in_flight} batches on their way and must wait")
        self._queues[name].append(arrived)

    @property
    def _needs_features(self) -> bool:
        """Whether an activation must have some."""
        return True

    def _begun_of(self, _name: str) -> int:
        """How many of a client's batches are in a step that has begun."""
        return 0

    def _activation(
        self, name: str, body: Batch, tensors: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> Arrived:
        # Where rows are sampled one by one, there may be none or all of them.
        sampled = self._schedule.privacy.by_record
        least, most = (0, self._samples.get(name, 0)) if sampled else (1, self._schedule.batch_size)
        for tensor in tensors:
            # Before anything is remembered of it.
            if (
                tensor.dim() < 1
                or not least <= len(tensor) <= most
                or (len(tensor) and not tensor.numel() and self._needs_features)
            ):
                raise MessageError(f"the activation has shape {tuple(tensor.shape)}; expected {least} to {most} rows")
            if tensor.is_floating_point():
                check_range(tensor, limit=float("inf"), what=f"the activation of {name} at cut '{self._cut}'")
        count = len(tensors[0]) if tensors else 0
        if labels is not None:
            expect_tensor(labels, what="the labels", dtype=torch.int64, shape=(count,))
        activation = self._coders[name][0].unpack(tensors, body.shape)
        expect_tensor(activation, what="the activation", dtype=torch.float32, shape=[None, *body.shape])
        self._same_shape(name, activation)
        rows = tensors[-1].long() if len(tensors) > 1 else None
        return Arrived(body, activation, labels, rows)

    def _same_shape(self, name: str, activation: torch.Tensor) -> None:
        others = [one for other, queue in self._queues.items() if other != name for one in queue]
        if others:
            shape = [None, *others[0].tensor.shape[1:]]
            expect_tensor(activation, what="the activation", dtype=torch.float32, shape=shape)

    def _step(self, waiting: dict[str, Arrived]) -> None:
        batches = {name: (one.tensor, one.labels) for name, one in waiting.items() if one.labels is not None}
        results = self._trainer.step(batches)
        for name, one in waiting.items():
            result = results[name]
            self.book.add([(result, len(result.gradient))])
            self.samples += len(result.gradient)
            self._answer(name, one, result.gradient, result.loss, result.correct)

    def _answer(self, name: str, to: Arrived, gradient: torch.Tensor, loss: float, correct: int) -> None:
        rows = torch.arange(len(gradient)) if to.rows is None else to.rows
        tensors = self._coders[name][1].pack(gradient, rows)
        if name in self._trainer.norms:
            tensors.append(self._trainer.norms[name])
        self._send(name, Gradient(to.body.round, to.body.step, loss, correct), tensors)


class JoinedSteps(Steps):
    """Steps of clients that hold columns of the same people: each sends its activation of the same rows, one of them
    the labels too, and gets the gradient by its own."""

    def take(self, name: str, body: Batch | HeadGradient, tensors: Sequence[torch.Tensor]) -> None:
        if not isinstance(body, Batch) or not tensors:
            raise MessageError(f"{type(body).__name__} was not due")
        labelled = tensors[-1].dtype == torch.int64
        labels = tensors[-1] if labelled else None
        count = len(tensors) - 1 if labelled else len(tensors)
        self._keep(name, self._activation(name, body, tensors[:count], labels))

    @property
    def _needs_features(self) -> bool:
        # Who has labels alone adds none to those of the others.
        return False

    def _same_shape(self, _name: str, activation: torch.Tensor) -> None:
        if activation.dim() != 2:
            raise MessageError(
                f"activations that are joined have shape (rows, features), not {tuple(activation.shape)}"
            )

    def _step(self, waiting: dict[str, Arrived]) -> None:
        join = self._schedule.join
        assert join is not None
        outputs = [one.tensor for one in waiting.values()]
        if len({len(one) for one in outputs}) != 1:
            raise MessageError("the clients' batches differ in rows: their seeds of the order are not the same")
        given = [one.labels for one in waiting.values() if one.labels is not None]
        if len(given) != 1:
            raise MessageError(f"one client must hold the labels, and {len(given)} do")
        together = joined(outputs, join)
        self._trainer.check(together, given[0])
        result = self._trainer.step({"all": (together, given[0])})["all"]
        self.book.add([(result, len(together))])
        widths = [one.shape[1] for one in outputs]
        parts = result.gradient.split(widths, dim=1) if join == "concat" else [result.gradient] * len(outputs)
        for (name, one), part in zip(waiting.items(), parts, strict=True):
            self._answer(name, one, part, result.loss, result.correct)
        self.samples += len(together)


class USteps(Steps):
    """Steps of a U: a client sends an activation and gets the tail's output; it keeps its labels, sends the gradient
    of its loss by that output, and gets the gradient by its activation."""

    def __init__(self, trainer: TailTrainer, *, cut: str, schedule: Schedule, send: Send) -> None:
        super().__init__(trainer, cut=cut, schedule=schedule, send=send)
        self._outputs: dict[str, torch.Tensor] | None = None
        self._begun: dict[str, Arrived] = {}
        self._gradients: dict[str, torch.Tensor] = {}

    def begin(self, samples: Mapping[str, int]) -> None:
        super().begin(samples)
        self._outputs, self._begun, self._gradients = None, {}, {}

    def drop(self, name: str) -> None:
        super().drop(name)
        self._gradients.pop(name, None)

    def has(self, name: str) -> bool:
        due = self._outputs is not None and name in self._outputs
        return name in self._gradients if due else super().has(name)

    def owes(self, name: str) -> bool:
        return super().has(name) or bool(self._begun_of(name))

    def _begun_of(self, name: str) -> int:
        return int(self._outputs is not None and name in self._outputs)

    def take(self, name: str, body: Batch | HeadGradient, tensors: Sequence[torch.Tensor]) -> None:
        if isinstance(body, Batch):
            if any(tensor.dtype == torch.int64 for tensor in tensors):
                raise MessageError("a step of a U has no labels: they stay at the client")
            arrived = self._activation(name, body, tensors, None)
            self._trainer.check_activation(arrived.tensor)
            self._keep(name, arrived)
            return
        if self._outputs is None or name not in self._outputs or name in self._gradients:
            raise MessageError("HeadGradient was not due, Batch was")
        if len(tensors) != 1:
            raise MessageError(f"a head's gradient is one tensor, not {len(tensors)}")
        shape = self._outputs[name].shape
        expect_tensor(tensors[0], what="the head's gradient", dtype=torch.float32, shape=shape)
        check_range(tensors[0], limit=float("inf"), what=f"the head's gradient of {name}")
        self._gradients[name] = tensors[0]

    def step_when_complete(self, active: Collection[str]) -> None:
        try:
            while True:
                if self._outputs is None:
                    if not active or not all(self._queues.get(name) for name in active):
                        return
                    self._begun = {name: self._queues[name].popleft() for name in active}
                    self._outputs = self._trainer.forward({name: one.tensor for name, one in self._begun.items()})
                    for name, one in self._begun.items():
                        self._send(name, Output(one.body.round, one.body.step), [self._outputs[name]])
                due = [name for name in self._outputs if name in active]
                if due and not all(name in self._gradients for name in due):
                    return
                self._finish(self._outputs)
        except (RuntimeError, ValueError) as error:
            raise MessageError(f"the tail cannot learn from this step: {first_line(error)}") from error

    def _finish(self, outputs: Mapping[str, torch.Tensor]) -> None:
        # Who is gone since it got its output contributes nothing.
        there = {name: self._gradients.get(name, torch.zeros_like(one)) for name, one in outputs.items()}
        found = self._trainer.backward(there)
        for name in self._gradients:
            self.samples += len(found[name])
            self._answer(name, self._begun[name], found[name], 0.0, 0)
        self._outputs, self._begun, self._gradients = None, {}, {}
