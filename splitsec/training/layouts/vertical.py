"""Vertical: clients hold different columns of the same rows, and the server joins their activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from splitsec.cut.joined import joined
from splitsec.errors import ConfigError, MessageError, RefusedError
from splitsec.settings.run import RunSettings
from splitsec.training.layouts.base import LAYOUTS, Arrived, Layout, StepGatherer, times
from splitsec.training.messages import Hello
from splitsec.training.step import StepResult
from splitsec.training.tail import TailTrainer


class JoinedSteps(StepGatherer):
    """Each client sends its activation of the same rows.

    One client the labels too, and gets the gradient with respect to its own activation.
    """

    def _check_batch(self, arrived: Arrived) -> None:
        """Leave it to the step: the tail takes the activations of all clients together."""

    @property
    def _needs_features(self) -> bool:
        # A client with labels alone adds no features to those of the others.
        return False

    def _check_shape(self, name: str, activation: torch.Tensor) -> None:
        if activation.dim() != 2:
            raise MessageError(
                f"activations that are joined have shape (rows, features), not {tuple(activation.shape)}"
            )

    def _step(self, waiting: dict[str, Arrived]) -> Iterator[tuple[str, StepResult]]:
        join = self._settings.join
        assert join is not None
        outputs = [arrived.tensor for arrived in waiting.values()]
        if len({len(output) for output in outputs}) != 1:
            raise MessageError("the clients' batches differ in rows: their seeds of the order are not the same")
        labels = [arrived.labels for arrived in waiting.values() if arrived.labels is not None]
        if len(labels) != 1:
            raise MessageError(f"one client must hold the labels, and {len(labels)} do")
        together = joined(outputs, join)
        self._trainer.check(together, labels[0])
        result = self._trainer.step({"all": (together, labels[0])})["all"]
        self.book.add([(result, len(together))])
        self.samples += len(together)
        widths = [output.shape[1] for output in outputs]
        gradients = result.gradient.split(widths, dim=1) if join == "concat" else [result.gradient] * len(outputs)
        for name, gradient in zip(waiting, gradients, strict=True):
            yield name, StepResult(result.loss, result.correct, gradient)


class Vertical(Layout):
    """Clients with columns of the same rows."""

    gatherer = JoinedSteps
    aligns_rows = True

    def check_hello(self, name: str, hello: Hello, others: Mapping[str, Hello], settings: RunSettings) -> None:
        columns = hello.columns
        if columns is None:
            return
        if settings.epochs and not columns.trains:
            raise RefusedError(
                f"{name} is there for predictions alone (train = false), but the server's run trains {settings.epochs} "
                "epochs: for predictions with trained weights the server needs epochs = 0 and the weights of its tail"
            )
        if not settings.epochs and not columns.trained:
            raise RefusedError(
                f"the server's run has no training (epochs = 0) and the front of {name} is not trained: give it "
                "weights = 'front.safetensors', as the run saved it that trained the server's tail"
            )
        for other, hello_before in others.items():
            before = hello_before.columns
            if before is not None and settings.epochs and columns.labels and before.labels:
                raise RefusedError(
                    f"{name} and {other} both have labels: one client's data has the column 'y', leave it out at the "
                    "other"
                )
            if before is not None and columns.asks and before.asks:
                raise RefusedError(
                    f"{name} and {other} both ask for predictions, and one client can: set ask = false at the other"
                )

    def check_members(self, members: Mapping[str, Hello], settings: RunSettings, trainer: TailTrainer) -> None:
        self._check_complete(members, settings)
        widths = [hello.shape[0] for hello in members.values() if hello.shape]
        if len(widths) == len(settings.clients):
            total = sum(widths) if settings.join == "concat" else widths[0]
            trainer.check_activation(torch.zeros(1, total))

    def check_return(self, *, finished: bool) -> None:
        raise RefusedError(
            "the rows of all clients were aligned before: for other rows start all parties again, the server with "
            "epochs = 0, all with the trained weights"
            if finished
            else "columns are joined of all clients from the beginning: start all parties again, with checkpoints to "
            "go on from the last round"
        )

    @staticmethod
    def _check_complete(members: Mapping[str, Hello], settings: RunSettings) -> None:
        parts = {name: hello.columns for name, hello in members.items() if hello.columns is not None}
        if len(parts) < len(settings.clients):
            return
        if settings.epochs and not any(part.labels for part in parts.values()):
            raise ConfigError("no client has labels, and training needs them: give one client's data a column 'y'")
        if not settings.epochs and all(part.asks is False for part in parts.values()):
            raise ConfigError(
                "no client asks for predictions: the one that is to have them needs ask = true (if nothing is said, it "
                "is the one whose data has labels)"
            )
        widths = {name: hello.shape for name, hello in members.items() if hello.shape}
        if settings.join == "sum" and len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} {times(shape)}" for name, shape in widths.items())
            raise ConfigError(f"activations that are added must have the same number of features; there are: {listed}")


LAYOUTS.register("vertical")(Vertical())
