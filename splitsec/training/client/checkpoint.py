"""What a client keeps in a checkpoint, and how it goes on from one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from splitsec.cut.origin import MARK_DIGITS, values_digest
from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.errors import ConfigError
from splitsec.randomness import RunRandomness
from splitsec.settings.run import RunSettings
from splitsec.training.checkpoints import Checkpoints, check_identity, identity_of, optimizer_tensors, restore_optimizer
from splitsec.training.front import FrontTrainer
from splitsec.training.step import segment_digest
from splitsec.version import __version__


class ClientCheckpoints:
    """A client's checkpoints of a run, and what a new start learns from those that there are.

    Args:
        checkpoints: where they are; None keeps none.
        segments: of the client, as they are now.
        data: of the client.

    Attributes:
        saved: the rounds at whose beginning this client can go on.
        run: the id of their run; empty without any.
        marks: of the segments in each of them, see `Origin`.
        begins: a digest of the values that the segments began with.
        taken: steps that a privacy budget has counted.
    """

    def __init__(
        self, checkpoints: Checkpoints | None, segments: Sequence[nn.Module], data: Part | Columns, *, name: str
    ) -> None:
        self._checkpoints = checkpoints
        self._segments = segments
        self._name = name
        self._data = _digest_of(data)
        self.saved: tuple[int, ...] = () if checkpoints is None else checkpoints.rounds()
        self.run = ""
        self.marks: tuple[str, ...] = ()
        self.begins = segment_digest(*segments)
        self.taken = 0
        self._facts: dict[str, Any] = {}
        if checkpoints is not None and self.saved:
            _, self._facts = checkpoints.load(self.saved[-1])
            self.begins, self.run = self._facts["begins"], self._facts["run"]
            self.marks = tuple(checkpoints.load(number)[1].get("mark", "") for number in self.saved)
            self.taken = self._facts.get("taken", 0)

    @property
    def kept(self) -> bool:
        """Return whether checkpoints are kept."""
        return self._checkpoints is not None

    def randomness(self, seed: int | None, *, repeatable: bool) -> RunRandomness:
        """Return the randomness that the run goes on with: the checkpoint's, or a new one.

        Raises:
            ConfigError: this client's seed or data are not those that its run began with.
        """
        asked = RunRandomness(seed, repeatable=repeatable)
        if self._checkpoints is None or not self.saved:
            return asked
        directory = self._checkpoints.directory
        before = RunRandomness(self._facts["seed"], secret=bytes.fromhex(self._facts.get("secret", "")))
        if repeatable == bool(before.secret):
            begun = str(not before.secret).lower()
            raise ConfigError(
                f"the checkpoints in {directory} are of a run with repeatable = {begun}: set it back to go on with "
                "that run, or remove the checkpoints to begin anew"
            )
        if seed is not None and seed != before.seed:
            raise ConfigError(
                f"the checkpoints in {directory} are of a run with another seed: set it back to go on with that run, "
                "or remove the checkpoints to begin anew"
            )
        if self._facts.get("data", self._data) != self._data:
            raise ConfigError(
                f"the data of {self._name} is not that which the run in {directory} began with, or something else is "
                "done to its columns: go on with the same, or remove the checkpoints of all parties to begin anew"
            )
        return before

    def join(self, run: str, cut: str, settings: RunSettings) -> None:
        """Note which run this client takes part in; checkpoints of another are no longer gone on from.

        Raises:
            ConfigError: it is theirs, with other settings.
        """
        if run != self.run:
            self.run, self.saved, self.taken = run, (), 0
        elif "identity" in self._facts and self._checkpoints is not None:
            check_identity(self._facts["identity"], identity_of(cut, settings), self._checkpoints.directory)

    def restore(self, number: int, trainer: FrontTrainer) -> None:
        """Go on from the beginning of a round; without a checkpoint of it, from the newest that there is.

        The latter is for the optimizer: the segments come from the others then.
        """
        if not self.saved or self._checkpoints is None:
            return
        tensors, _ = self._checkpoints.load(number if number in self.saved else self.saved[-1])
        for segment in self._segments:
            segment.load_state_dict({key: tensors[f"segment.{key}"] for key in segment.state_dict()})
        restore_optimizer(trainer.optimizer, tensors)
        trainer.randomness.state = tensors["randomness"]

    def save(
        self,
        number: int,
        trainer: FrontTrainer,
        randomness: RunRandomness,
        facts: dict[str, Any],
        *,
        cut: str,
        settings: RunSettings,
    ) -> None:
        """Write the checkpoint of a round's beginning, where any are kept.

        Raises:
            ConfigError: it cannot be written.
        """
        if self._checkpoints is None:
            return
        state = {key: value for segment in self._segments for key, value in segment.state_dict().items()}
        tensors = {f"segment.{name}": value for name, value in state.items()}
        tensors |= optimizer_tensors(trainer.optimizer)
        tensors["randomness"] = trainer.randomness.state
        known: dict[str, Any] = {
            "name": self._name,
            "cut": cut,
            "seed": randomness.seed,
            "secret": randomness.secret.hex(),
            "begins": self.begins,
            "run": self.run,
            "version": __version__,
            "identity": identity_of(cut, settings),
            "data": self._data,
        }
        self._checkpoints.save(number, tensors, known | facts)


def _digest_of(data: Part | Columns) -> str:
    """Return a digest of the data that a client trains on."""
    if isinstance(data, Columns):
        labels = torch.empty(0) if data.labels is None else data.labels
        # With how they are scaled: a front goes on with the columns that it began with.
        texts = "\n".join([*data.ids, *data.names, data.scaling.described])
        ids = hashlib.sha256(texts.encode()).hexdigest()
        return ids[:MARK_DIGITS] + values_digest([("values", data.values), ("labels", labels)])
    return values_digest([("images", data.train_images), ("labels", data.train_labels)])
