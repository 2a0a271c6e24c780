"""What the server keeps in a checkpoint, and how it goes on from one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from splitsec.cut.origin import MARK_DIGITS, values_digest
from splitsec.errors import ConfigError
from splitsec.mpc.prg import fresh_seed
from splitsec.parties.combining import Combiner
from splitsec.training.checkpoints import Checkpoints, optimizer_tensors, restore_optimizer
from splitsec.training.schedule import Schedule
from splitsec.training.tail import TailTrainer

# Settings that may change, to a larger value, when a run goes on.
MAY_GROW = ("epochs",)


def identity_of(cut: str, schedule: Schedule) -> dict[str, Any]:
    """Return the settings that identify a run: it goes on from a checkpoint only where they are all equal.

    That is every setting of the schedule but the number of epochs, which may grow.
    """
    # By way of JSON, so that it compares with what a checkpoint's file gives back.
    settings: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schedule))
    return {"cut": cut, **{key: value for key, value in settings.items() if key not in MAY_GROW}}


def check_same_run(checkpoints: Checkpoints, number: int, cut: str, schedule: Schedule) -> dict[str, Any]:
    """Return the facts of a checkpoint.

    Raises:
        ConfigError: they are those of another run, or of one with more epochs.
    """
    _, facts = checkpoints.load(number)
    check_identity(facts.get("identity", {}), identity_of(cut, schedule), checkpoints.directory)
    epochs = int(facts.get("epochs", schedule.epochs))
    if schedule.epochs < epochs:
        raise ConfigError(
            f"the run in {checkpoints.directory} has {epochs} epochs and epochs = {schedule.epochs} here: epochs may "
            "only grow when a run goes on; set it to the same or a larger number, or remove the checkpoints to begin "
            "anew"
        )
    if schedule.epochs > epochs and schedule.privacy.epsilon:
        raise ConfigError(
            f"the privacy budget of the run in {checkpoints.directory} was planned for {epochs} epochs, so epochs = "
            f"{schedule.epochs} cannot be taken; leave it at {epochs}, or begin a new run with a budget of its own"
        )
    return facts


def check_identity(before: Mapping[str, Any], now: Mapping[str, Any], directory: object) -> None:
    """Raise `ConfigError` naming the first setting that has changed since a checkpoint was written.

    Args:
        before, now: what `identity_of` gave then and gives now.
        directory: where the checkpoint is, for the message.
    """
    for key, value in now.items():
        if before.get(key) != value:
            raise ConfigError(
                f"the checkpoints in {directory} are of another run: {key} is {before.get(key)!r} there and {value!r} "
                "here; set it back to go on with that run, or remove the checkpoints to begin anew"
            )


def mark_of(tail: nn.Module, combined: Sequence[torch.Tensor]) -> str:
    """Return the mark of the tail and the combined segments that belong to it, see `Origin`.

    It is a digest of both under a fresh key, so that a client cannot try guesses of the tail's values on it.
    """
    named = [("combined", tensor) for tensor in combined] + list(tail.state_dict().items())
    return hashlib.sha256(fresh_seed() + values_digest(named).encode()).hexdigest()[:MARK_DIGITS]


def state_of(tail: nn.Module, trainer: TailTrainer, combiner: Combiner) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    tensors = {f"tail.{name}": one for name, one in tail.state_dict().items()}
    tensors |= optimizer_tensors(trainer.optimizer) | combiner.tensors()
    return {**tensors, "randomness": trainer.randomness.state}


def restore(tail: nn.Module, trainer: TailTrainer, combiner: Combiner, tensors: Mapping[str, torch.Tensor]) -> None:
    """Go on from what `state_of` gave."""
    held = {name.removeprefix("tail."): one for name, one in tensors.items() if name.startswith("tail.")}
    tail.load_state_dict(held)
    restore_optimizer(trainer.optimizer, tensors)
    combiner.restore(tensors)
    trainer.randomness.state = tensors["randomness"]
