"""A client's part in a run's training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from splitsec.cut import load_part
from splitsec.errors import MessageError
from splitsec.mpc.ring import check_range
from splitsec.parties.events import EpochDone, Joined, Report
from splitsec.parties.names import SERVER
from splitsec.training.aggregation import flatten_state, mask_upload, unflatten_state
from splitsec.training.data import Part, training_batches
from splitsec.training.loop import FrontTrainer, segment_digest
from splitsec.training.messages import (
    PROTOCOL,
    Batch,
    Combined,
    DealerBody,
    Gradient,
    HeadGradient,
    Hello,
    JoinRun,
    Output,
    RunSeed,
    Schedule,
    ServerBody,
    Upload,
    Welcome,
)
from splitsec.transport import Traffic, expect_tensor

# With a head, losses and correct labels are known to clients alone: their means travel as two more values of the masked
# upload, so that the server learns them of all clients together.
MEANS = 2
_LARGEST_LOSS = 4000.0


class Ask(Protocol):
    """Sends a body with tensors to the server and returns its answer."""

    def __call__(
        self, body: ServerBody, tensors: Sequence[torch.Tensor] = (), *, timeout: float | None = None
    ) -> tuple[ServerBody, list[torch.Tensor]]: ...


class Learner:
    """Trains front and head with the server.

    Args:
        ask: asks the server.
        join: asks the dealer.
        traffic: the bytes to and from the server so far.
    """

    def __init__(
        self,
        front: nn.Module,
        head: nn.Module | None,
        *,
        name: str,
        cut: str,
        ask: Ask,
        join: Callable[[DealerBody], tuple[DealerBody, list[torch.Tensor]]],
        traffic: Callable[[], Traffic],
        report: Report,
    ) -> None:
        self._front = front
        self._head = head
        self._segments = [front] if head is None else [front, head]
        self._name = name
        self._cut = cut
        self._ask = ask
        self._join = join
        self._traffic = traffic
        self._report = report

    def run(self, part: Part, *, seed: int | None, join_timeout: float) -> Schedule:
        """All epochs of the server's schedule; see `Client.train`."""
        samples = len(part.train_labels)
        values = flatten_state(self._state()).numel() + (MEANS if self._head is not None else 0)
        hello = Hello(PROTOCOL, self._cut, segment_digest(*self._segments), values, samples)
        welcome, _ = self._ask(hello, timeout=join_timeout)
        if not isinstance(welcome, Welcome):
            raise MessageError(f"the server answered {type(welcome).__name__} to Hello")
        self._report(Joined(self._name, SERVER))
        schedule = welcome.schedule
        joined, _ = self._join(JoinRun(welcome.run))
        if not isinstance(joined, RunSeed):
            raise MessageError(f"the dealer answered {type(joined).__name__} to JoinRun")
        if seed is None:
            seed = int(torch.seed() % (1 << 31))
        batches = training_batches(part, batch_size=schedule.batch_size, seed=seed)
        trainer = FrontTrainer(self._front, head=self._head, learning_rate=schedule.learning_rate, cut=self._cut)
        for epoch in range(schedule.epochs):
            for step, (images, labels) in enumerate(batches):
                self._step(trainer, epoch, step, images, labels)
            combined = self._combine(trainer, epoch, joined.seed, samples)
            traffic = self._traffic()
            self._report(
                EpochDone(
                    self._name,
                    epoch=epoch + 1,
                    epochs=schedule.epochs,
                    loss=combined.loss,
                    accuracy=combined.accuracy,
                    bytes_sent=traffic.bytes_sent,
                    bytes_received=traffic.bytes_received,
                )
            )
        return schedule

    def _step(self, trainer: FrontTrainer, epoch: int, step: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        activation = trainer.forward(images)
        if self._head is None:
            answer, tensors = self._ask(Batch(epoch, step), [activation, labels])
        else:
            answer, tensors = self._ask(Batch(epoch, step), [activation])
            if not isinstance(answer, Output) or len(tensors) != 1:
                raise MessageError(f"the server answered {type(answer).__name__} to a batch")
            gradient = trainer.turn(tensors[0], labels)
            answer, tensors = self._ask(HeadGradient(epoch, step), [gradient])
        if not isinstance(answer, Gradient) or len(tensors) != 1:
            raise MessageError(f"the server answered {type(answer).__name__} to a batch")
        trainer.backward(expect_tensor(tensors[0], what="the gradient", dtype=torch.float32, shape=activation.shape))

    def _state(self) -> Mapping[str, torch.Tensor]:
        return {key: value for segment in self._segments for key, value in segment.state_dict().items()}

    def _combine(self, trainer: FrontTrainer, epoch: int, seed: bytes, samples: int) -> Combined:
        state = self._state()
        flat = flatten_state(state)
        if self._head is not None:
            loss, accuracy = trainer.take_means()
            flat = torch.cat([flat, torch.tensor([min(loss, _LARGEST_LOSS), accuracy], dtype=torch.float64)])
        upload = mask_upload(flat, weight=samples, seed=seed, round_number=epoch)
        answer, tensors = self._ask(Upload(epoch), [upload])
        if not isinstance(answer, Combined) or answer.round != epoch or len(tensors) != 1:
            raise MessageError(f"the server answered {type(answer).__name__} to an upload")
        average = expect_tensor(tensors[0], what="the combined front", dtype=torch.float64, shape=upload.shape)
        check_range(average, limit=float("inf"), what="the combined front")
        combined = unflatten_state(average if self._head is None else average[:-MEANS], state)
        for segment in self._segments:
            load_part(segment, combined)
        return answer
