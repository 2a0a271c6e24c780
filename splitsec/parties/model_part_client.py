"""A model of which every client trains a part by itself, and which nobody has as a whole.

Each part is a network of its own, as wide as its share of the model; the whole returns the mean of their logits.
Training parts of a network's width apart: B. Yuan et al., "Distributed learning of fully connected neural networks
using independent subnet training", VLDB 2022, section 3, with one partition and no exchange in between. The parts go to
the server under masks (see `mpc.shared`), are put together there, and predictions run on shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.cut import INPUT, SplitModel
from splitsec.data.loaders import Loader
from splitsec.data.row_checks import activation_shape
from splitsec.data.rows import Part
from splitsec.errors import ConfigError, MessageError
from splitsec.events import RoundDone
from splitsec.mpc.program.compile import compile_tail, encode_weights
from splitsec.mpc.program.program import Program, Weights
from splitsec.mpc.program.validate import check_program
from splitsec.mpc.protocols.shared_linear import give, merge_programs, shared_weights
from splitsec.mpc.session.messages import Done
from splitsec.parties.client import Client
from splitsec.parties.setup import Network, Runtime
from splitsec.prediction.messages import Half, OwnerSeed, OwnWeights
from splitsec.prediction.noise_inputs import noise_inputs
from splitsec.randomness import RunRandomness
from splitsec.settings.parties import BATCHES
from splitsec.settings.run import RunSettings
from splitsec.training.step import EpochBook, StepResult, check_logits
from splitsec.transport import expect_shape

# Rows of noise, to measure how large values get where the weights guarantee nothing.
CALIBRATION = 256


class Whole(nn.Module):
    """Parts of a model put together: the mean of their logits. For comparison; nobody in a run holds one."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        return torch.stack([part(x) for part in self.parts]).mean(0)


class HalvesClient(Client):
    """A client that trains its part of a model by itself: `learn`, then `give`, then `predict` with the whole.

    Args:
        half: this client's part, which takes images and returns logits; it is trained in place.

    Other arguments are those of `Client`; `predict` takes images, of which the batch size must be one of `BATCHES`.

    Example:
        >>> with HalvesClient.of(model, network=network) as client:
        ...     client.learn(part, epochs=30)
        ...     client.give(part)
        ...     print(client.predict(part.test_images).labels)  # doctest: +SKIP
    """

    half: nn.Module

    @classmethod
    def of(cls, half: nn.Module, *, network: Network, runtime: Runtime | None = None) -> HalvesClient:
        """Make a client with this part of the model; the other arguments are those of `Client`."""
        split = SplitModel(half, INPUT, check=False)
        client = cls(split.front, cut=INPUT, network=network, runtime=runtime)
        client.half = split.tail
        return client

    def learn(
        self,
        part: Part,
        *,
        epochs: int = 30,
        batch_size: int = 16,
        learning_rate: float = 2e-3,
        seed: int | None = None,
        repeatable: bool = False,
    ) -> None:
        """Train the part of the model with this client's data alone; nothing is sent.

        Args:
            part: its rows.
            epochs: passes over them.
            batch_size: rows of a step.
            learning_rate: of Adam.
            seed: goes into the order of the batches, dropout and the like, beside a fresh secret.
            repeatable: leave the secret out, see `Client.train`.

        Raises:
            ConfigError: data that the part cannot learn from; names the row or the layer.
            MessageError: a label without a logit.
        """
        if epochs < 1 or batch_size < 1 or not learning_rate > 0:
            raise ConfigError("epochs and the batch size must be 1 or more, the learning rate above 0")
        part.check()
        activation_shape(self.half, part.train_images, cut=INPUT, what="train_images")
        own = RunRandomness(seed, repeatable=repeatable)
        loader = Loader(part.train_images, part.train_labels, batch_size=batch_size, seed=own.order)
        optimizer = torch.optim.Adam(self.half.parameters(), lr=learning_rate)
        self.half.train()
        with own.generator():
            for epoch in range(epochs):
                book = EpochBook()
                for index in range(loader.per_epoch):
                    images, labels, _ = loader.batch(epoch * loader.per_epoch + index)
                    assert labels is not None
                    logits = self.half(images)
                    check_logits(logits, labels)
                    loss = F.cross_entropy(logits, labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    correct = int((logits.detach().argmax(1) == labels).sum())
                    book.add([(StepResult(loss.item(), correct, logits), len(labels))])
                self._report(
                    RoundDone(
                        self.name,
                        round=epoch + 1,
                        rounds=epochs,
                        loss=book.loss,
                        accuracy=book.accuracy,
                        bytes_sent=0,
                        bytes_received=0,
                        samples=book.samples,
                    )
                )
        self.half.eval()

    def give(self, part: Part) -> None:
        """Send the part of the model under a mask: uniform to the server, and the dealer does not see it.

        Server and other clients learn its layers, their shapes, and the order of magnitude of its values.

        Raises:
            UnsupportedLayerError: a layer without an encrypted form.
            RefusedError: the server wants no parts.
        """
        shape, dtype = part.train_images.shape[1:], part.train_images.dtype
        # Never on the client's own images: the dealer and the others learn the ranges.
        noise = noise_inputs(CALIBRATION, shape, dtype, "parts of a model", words=None)
        split = SplitModel(self.half, INPUT, check=False)
        compiled = [compile_tail(split.tail, (count, *shape), calibration=noise) for count in BATCHES]
        weights = encode_weights(*compiled[0])
        answer, _ = self._connection.dealer.request(OwnWeights())
        if not isinstance(answer, OwnerSeed):
            raise MessageError(f"the dealer answered {type(answer).__name__} to OwnWeights")
        masked = [give(program, weights, token=answer.token, seed=answer.seed) for program, _ in compiled]
        programs = tuple(program for program, _ in masked)
        done, _ = self._connection.server.request(Half(answer.token, programs), {"weights": masked[0][1]})
        if not isinstance(done, Done):
            raise MessageError(f"the server answered {type(done).__name__} to a part of the model")


class Halves:
    """The server's side: parts as they come, and the whole in shares when all are there."""

    def __init__(self, settings: RunSettings) -> None:
        self._clients = settings.clients
        self._parts: dict[str, tuple[Half, list[torch.Tensor]]] = {}

    def take(self, name: str, half: Half, weights: Sequence[torch.Tensor]) -> None:
        """Take a client's part, or a new one in the place of that which it gave.

        Raises:
            MessageError: the part is no program, names another owner, or differs from the others'.
        """
        if not half.programs:
            raise MessageError("a part of a model needs a program")
        for program in half.programs:
            check_program(program)
            items = shared_weights(program)
            if any(item.owner != half.token for item in items) or len(weights) != 2 * len(items):
                raise MessageError("the part's weights are not those of its program")
            for index, item in enumerate(items):
                expect_shape(weights[2 * index], item.weight, what="a weight")
                expect_shape(weights[2 * index + 1], item.bias, what="a bias")
        for other, _ in (part for owner, part in self._parts.items() if owner != name):
            if [program.input_shape for program in other.programs] != [
                program.input_shape for program in half.programs
            ]:
                raise MessageError("the parts of the model take different inputs")
            merge_programs([other.programs[0], half.programs[0]])
        self._parts[name] = half, list(weights)

    @property
    def missing(self) -> list[str]:
        """Return the clients whose part is not here yet."""
        return [name for name in self._clients if name not in self._parts]

    def whole(self) -> dict[tuple[int, ...], tuple[Program, dict[int, Weights]]]:
        """By input shape, the whole model's program, and its masked weights by step number."""
        ordered = [self._parts[name] for name in self._clients]
        parts = {}
        for programs in zip(*(half.programs for half, _ in ordered), strict=True):
            merged = merge_programs(programs)
            tensors = [tensor for _, share in ordered for tensor in share]
            weights = {
                item.number: Weights(tensors[2 * index], tensors[2 * index + 1])
                for index, item in enumerate(shared_weights(merged))
            }
            parts[merged.input_shape] = merged, weights
        return parts
