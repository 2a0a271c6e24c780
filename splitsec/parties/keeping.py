"""What the server keeps in a checkpoint, and how it goes on from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.parties.combining import Combiner
from splitsec.training.checkpoints import Checkpoints, optimizer_tensors, restore_optimizer
from splitsec.training.schedule import Schedule
from splitsec.training.tail import TailTrainer


def facts_of(cut: str, schedule: Schedule) -> dict[str, Any]:
    """What makes a run that run: with other settings its checkpoints are of no use."""
    return {
        "cut": cut,
        "clients": list(schedule.clients),
        "batch_size": schedule.batch_size,
        "learning_rate": schedule.learning_rate,
        "combine": schedule.combine,
        "every": schedule.every,
        "privacy": msgspec.to_builtins(schedule.privacy),
    }


def check_same_run(checkpoints: Checkpoints, number: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a checkpoint; raises `ConfigError` if they are those of another run."""
    _, held = checkpoints.load(number)
    for key, value in facts.items():
        if held.get(key) != value:
            raise ConfigError(
                f"the checkpoints in {checkpoints.directory} are of another run: {key} is {held.get(key)!r} there and "
                f"{value!r} here; remove them to begin anew"
            )
    return held


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
