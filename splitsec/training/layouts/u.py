"""A U: clients hold rows and labels, and keep the labels: the model's last segment, the head, is theirs too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch

from splitsec.errors import MessageError, first_line
from splitsec.mpc.ring import check_range
from splitsec.settings.run import RunSettings
from splitsec.training.layouts.base import LAYOUTS, Arrived, Layout, Participant, StepGatherer
from splitsec.training.messages import Batch, HeadGradient, Output
from splitsec.training.step import StepResult
from splitsec.training.tail import TailTrainer
from splitsec.transport import NamedTensors, expect_shape
from splitsec.transport.outgoing import Outgoing

# What the range of masked uploads takes.
_LARGEST_LOSS = 4000.0


class UnlabelledSteps(StepGatherer):
    """A client sends an activation and gets the tail's output.

    It keeps its labels, sends the gradient of its loss with respect to that output, and gets the gradient with respect
    to its activation.
    """

    labelled = False

    def __init__(self, trainer: TailTrainer, *, cut: str, settings: RunSettings) -> None:
        super().__init__(trainer, cut=cut, settings=settings)
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

    def add(self, name: str, body: Batch | HeadGradient, tensors: NamedTensors) -> None:
        if isinstance(body, Batch):
            super().add(name, body, tensors)
            return
        if self._outputs is None or name not in self._outputs or name in self._gradients:
            raise MessageError("HeadGradient was not due, Batch was")
        gradient = expect_shape(tensors["gradient"], self._outputs[name].shape, what="the head's gradient")
        check_range(gradient, limit=float("inf"), what=f"the head's gradient of {name}")
        self._gradients[name] = gradient

    def _check_batch(self, arrived: Arrived) -> None:
        self._trainer.check_activation(arrived.tensor)

    def step_when_complete(self, active: Collection[str]) -> Iterator[Outgoing]:
        try:
            while True:
                if self._outputs is None:
                    if not active or not all(self._queues.get(name) for name in active):
                        return
                    yield from self._forward({name: self._queues[name].popleft() for name in active})
                outputs = self._outputs
                assert outputs is not None
                due = [name for name in outputs if name in active]
                if due and not all(name in self._gradients for name in due):
                    return
                yield from self._answers(self._begun, self._step(self._begun))
        except (RuntimeError, ValueError) as error:
            raise MessageError(f"the tail cannot learn from this step: {first_line(error)}") from error

    def _forward(self, waiting: dict[str, Arrived]) -> Iterator[Outgoing]:
        """Begin a step: give each client the tail's output."""
        self._begun = waiting
        outputs = self._outputs = self._trainer.forward({name: arrived.tensor for name, arrived in waiting.items()})
        for name, arrived in waiting.items():
            yield Outgoing(name, Output(arrived.body.round, arrived.body.step), {"output": outputs[name]})

    def _step(self, waiting: dict[str, Arrived]) -> Iterator[tuple[str, StepResult]]:
        outputs, answered = self._outputs, list(self._gradients)
        assert outputs is not None
        # A client that has gone since it got its output contributes nothing.
        there = {name: self._gradients.get(name, torch.zeros_like(output)) for name, output in outputs.items()}
        gradients = self._trainer.backward(there)
        self._outputs, self._begun, self._gradients = None, {}, {}
        for name in answered:
            self.samples += len(gradients[name])
            yield name, StepResult(0.0, 0, gradients[name])


class HeadOwner(Participant):
    """Keeps its labels: its head turns the tail's output into logits, and it knows loss and accuracy alone."""

    def labels_to_send(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        return None

    def answer(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._trainer.turn(output, labels)

    def note(self, result: StepResult) -> None:
        """Know better than the server, which says 0."""

    def figures(self, *, silent: bool) -> list[float]:
        return [0.0, 0.0] if silent else [min(self._trainer.book.loss, _LARGEST_LOSS), self._trainer.book.accuracy]


class UShaped(Layout):
    """Clients with rows, whose labels stay with them."""

    gatherer = UnlabelledSteps
    participant = HeadOwner
    figures = 2


LAYOUTS.register("u")(UShaped())
