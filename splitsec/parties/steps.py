"""The steps of training at the server: gathers what the clients of one step send, and answers them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from splitsec.errors import MessageError
from splitsec.mpc.ring import check_range
from splitsec.training.loop import EpochBook, TailTrainer
from splitsec.training.messages import Batch, Gradient, HeadGradient, Output, ServerBody
from splitsec.transport import Incoming, Sender, expect_tensor

Send = Callable[[Sender, ServerBody, Sequence[torch.Tensor]], None]


class Steps:
    """Steps with labels: every client sends an activation and its labels, and gets a gradient.

    Args:
        batch_size: the most rows that a client may send.
        send: sends an answer.
    """

    def __init__(self, trainer: TailTrainer, *, cut: str, batch_size: int, send: Send) -> None:
        self.pending: dict[str, Incoming[ServerBody]] = {}
        self._trainer = trainer
        self.book = EpochBook()
        self._cut = cut
        self._batch_size = batch_size
        self._send = send

    def take(self, incoming: Incoming[ServerBody]) -> None:
        """Check what a client sends for the step that is due, and keep it.

        Raises:
            MessageError, RangeError: it cannot be learned from; nothing has changed.
        """
        if not isinstance(incoming.body, Batch):
            raise MessageError(f"{type(incoming.body).__name__} was not due")
        if len(incoming.tensors) != 2:
            raise MessageError(f"a batch has an activation and labels, not {len(incoming.tensors)} tensors")
        activation, labels = incoming.tensors
        self._check_activation(incoming.sender.name, activation)
        expect_tensor(labels, what="the labels", dtype=torch.int64, shape=(len(activation),))
        self._trainer.check(activation, labels)
        self.pending[incoming.sender.name] = incoming

    def owes(self, _name: str) -> bool:
        """Whether a step that a client has begun waits for it."""
        return False

    def _check_activation(self, name: str, activation: torch.Tensor) -> None:
        if activation.dim() < 2 or not 1 <= len(activation) <= self._batch_size:
            raise MessageError(
                f"the activation has shape {tuple(activation.shape)}; expected 1 to {self._batch_size} rows"
            )
        expect_tensor(activation, what="the activation", dtype=torch.float32, shape=[None] * activation.dim())
        check_range(activation, limit=float("inf"), what=f"the activation of {name} at cut '{self._cut}'")
        for other in self.pending.values():
            expect_tensor(
                activation, what="the activation", dtype=torch.float32, shape=[None, *other.tensors[0].shape[1:]]
            )

    def step_when_complete(self, active: Sequence[str]) -> None:
        """Learn and answer if everybody who is `active` has sent.

        Raises:
            MessageError: the tail cannot learn from this step.
        """
        if not active or any(name not in self.pending for name in active):
            return
        waiting, self.pending = self.pending, {}
        try:
            self._step({name: waiting[name] for name in active})
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise MessageError(f"the tail cannot learn from this step: {reason}") from error

    def _step(self, waiting: dict[str, Incoming[ServerBody]]) -> None:
        results = self._trainer.step({name: (one.tensors[0], one.tensors[1]) for name, one in waiting.items()})
        for name, one in waiting.items():
            result = results[name]
            self.book.add([(result, len(result.gradient))])
            self._send(one.sender, Gradient(result.loss, result.correct), [result.gradient])


class USteps(Steps):
    """Steps of a U: a client sends an activation and gets the tail's output; it keeps its labels, sends the gradient
    of its loss by that output, and gets the gradient by its activation."""

    _outputs: dict[str, torch.Tensor] | None = None

    def take(self, incoming: Incoming[ServerBody]) -> None:
        name = incoming.sender.name
        due = Batch if self._outputs is None else HeadGradient
        if not isinstance(incoming.body, due):
            raise MessageError(f"{type(incoming.body).__name__} was not due, {due.__name__} was")
        if len(incoming.tensors) != 1:
            raise MessageError(f"a step of a U has one tensor, not {len(incoming.tensors)}: labels stay at the client")
        (tensor,) = incoming.tensors
        if self._outputs is None:
            self._check_activation(name, tensor)
            self._trainer.check_activation(tensor)
        else:
            if name not in self._outputs:
                raise MessageError(f"{name} is not in this step")
            shape = self._outputs[name].shape
            expect_tensor(tensor, what="the head's gradient", dtype=torch.float32, shape=shape)
            check_range(tensor, limit=float("inf"), what=f"the head's gradient of {name}")
        self.pending[name] = incoming

    def owes(self, name: str) -> bool:
        return self._outputs is not None and name in self._outputs

    def _step(self, waiting: dict[str, Incoming[ServerBody]]) -> None:
        tensors = {name: one.tensors[0] for name, one in waiting.items()}
        if self._outputs is None:
            self._outputs = self._trainer.forward(tensors)
            for name, one in waiting.items():
                self._send(one.sender, Output(), [self._outputs[name]])
            return
        self._outputs = None
        gradients = self._trainer.backward(tensors)
        for name, one in waiting.items():
            self._send(one.sender, Gradient(0.0, 0), [gradients[name]])
