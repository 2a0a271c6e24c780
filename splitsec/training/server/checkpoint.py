"""What the server keeps in a checkpoint, and how it goes on from one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from splitsec.cut.origin import MARK_DIGITS, values_digest
from splitsec.errors import ConfigError
from splitsec.mpc.prg import fresh_seed
from splitsec.settings.run import RunSettings
from splitsec.settings.setting import growing
from splitsec.training.aggregation import ServerAggregation
from splitsec.training.checkpoints import Checkpoints, check_identity, identity_of, optimizer_tensors, restore_optimizer
from splitsec.training.messages import Hello
from splitsec.training.tail import TailTrainer
from splitsec.version import __version__


def check_same_run(checkpoints: Checkpoints, number: int, cut: str, settings: RunSettings) -> dict[str, Any]:
    """Return the facts of a checkpoint.

    Raises:
        ConfigError: they are those of another run, or of one with more epochs.
    """
    _, facts = checkpoints.load(number)
    check_identity(facts.get("identity", {}), identity_of(cut, settings), checkpoints.directory)
    for name, value in growing(settings).items():
        before = facts.get(name, value)
        if value < before:
            raise ConfigError(
                f"the run in {checkpoints.directory} has {name} = {before} and {name} = {value} here: {name} may only "
                "grow when a run goes on; set it to the same or a larger number, or remove the checkpoints to "
                "begin anew"
            )
    epochs = int(facts.get("epochs", settings.epochs))
    if settings.epochs > epochs and settings.privacy.epsilon:
        raise ConfigError(
            f"the privacy budget of the run in {checkpoints.directory} was planned for {epochs} epochs, so epochs = "
            f"{settings.epochs} cannot be taken; leave it at {epochs}, or begin a new run with a budget of its own"
        )
    return facts


def mark_of(tail: nn.Module, combined: Sequence[torch.Tensor]) -> str:
    """Return the mark of the tail and the combined segments that belong to it, see `Origin`.

    It is a digest of both under a fresh key, so that a client cannot try guesses of the tail's values on it.
    """
    named = [("combined", tensor) for tensor in combined] + list(tail.state_dict().items())
    return hashlib.sha256(fresh_seed() + values_digest(named).encode()).hexdigest()[:MARK_DIGITS]


class ServerCheckpoints:
    """The server's checkpoints of a run, and what a new start learns from those that there are.

    Args:
        checkpoints: where they are; None keeps none.

    Attributes:
        saved: the rounds at whose beginning the server can go on, when this start began.
        facts: those of the newest checkpoint; empty without one.
        run: the id of their run; empty without one.
        samples: of all clients together at the run's beginning; 0 without one.
        rounds: how many rounds the run has, where its epochs are those of the checkpoint; else 0.

    Raises:
        ConfigError: the checkpoints are of another run.
    """

    def __init__(self, checkpoints: Checkpoints | None, *, cut: str, settings: RunSettings) -> None:
        self._checkpoints = checkpoints
        self._cut = cut
        self._settings = settings
        self.saved: tuple[int, ...] = ()
        self.look_again()
        self.facts: dict[str, Any] = {}
        if checkpoints is not None and self.saved:
            self.facts = check_same_run(checkpoints, self.saved[-1], cut, settings)
        self.run = str(self.facts.get("run", ""))
        self.samples = int(self.facts.get("samples", 0))
        # The budget of privacy may end a run earlier than its epochs.
        self.rounds = int(self.facts.get("rounds", 0)) if self.facts.get("epochs") == settings.epochs else 0

    @property
    def on_disk(self) -> bool:
        """Return whether checkpoints are kept."""
        return self._checkpoints is not None

    def look_again(self) -> None:
        """Read which rounds there are now."""
        self.saved = () if self._checkpoints is None else self._checkpoints.rounds()

    def common_round(self, known: Iterable[Sequence[int]]) -> int:
        """Return the newest round that the server and all clients can go on from; else the server's newest.

        Args:
            known: the rounds of each client.
        """
        rounds = list(known)
        own = self.saved or (0,)
        common = [number for number in own if all(number in others for others in rounds)]
        return common[-1] if common else own[-1]

    def restore(self, number: int, tail: nn.Module, trainer: TailTrainer, rule: ServerAggregation) -> str:
        """Go on from the beginning of a round, if there are checkpoints; return the mark of that round."""
        if self._checkpoints is None or not self.saved:
            return ""
        tensors, facts = self._checkpoints.load(number)
        prefix = "tail."
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        tail.load_state_dict(state)
        restore_optimizer(trainer.optimizer, tensors)
        rule.restore(tensors)
        trainer.randomness.state = tensors["randomness"]
        return str(facts.get("mark", ""))

    def check_marks(self, members: Mapping[str, Hello], *, run: str, number: int, mark: str) -> None:
        """Raise `ConfigError` where a client's checkpoint of a round is not the partner of the server's."""
        for name, hello in members.items():
            marks = dict(zip(hello.rounds, hello.marks, strict=False)) if hello.run == run else {}
            if mark and marks.get(number, "") not in ("", mark):
                raise ConfigError(
                    f"the checkpoint of round {number} at {name} does not belong to the server's: one of them was "
                    "copied from another directory; remove those of all parties to begin anew"
                )

    def not_of_one_run(self, name: str, newest: int, number: int) -> ConfigError:
        """Return the error for a client that can go on from `newest` alone, and the server from `number`."""
        return ConfigError(
            f"{name} can go on from round {newest} and the server from round {number}: their checkpoints are not of "
            "one run; remove those of all parties to begin anew"
        )

    def save(
        self, number: int, facts: Mapping[str, Any], tail: nn.Module, trainer: TailTrainer, rule: ServerAggregation
    ) -> None:
        """Write the checkpoint of a round's beginning, where any are kept.

        Raises:
            ConfigError: it cannot be written.
        """
        if self._checkpoints is None:
            return
        tensors = {f"tail.{name}": value for name, value in tail.state_dict().items()}
        tensors |= optimizer_tensors(trainer.optimizer) | rule.tensors()
        tensors["randomness"] = trainer.randomness.state
        identity = {"identity": identity_of(self._cut, self._settings), **growing(self._settings)}
        self._checkpoints.save(number, tensors, {"version": __version__, **identity, **facts})
