"""Checkpoints: what a party needs to go on from the beginning of a round, written as a whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from splitsec.errors import ConfigError, first_line
from splitsec.files import whole_file

KEPT = 2
_NAME = re.compile(r"round-(\d{6})\.json\Z")


class Checkpoints:
    """The checkpoints of one party in a directory of its own.

    `round-N.safetensors` holds the tensors at the beginning of round N, `round-N.json` the facts beside them; the
    latter is written last, so a checkpoint that has one is complete. The last two are kept, since parties that are
    killed at the same moment may differ by one round.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot keep checkpoints in {directory}: {error.strerror}") from None

    def rounds(self) -> tuple[int, ...]:
        """The rounds at whose beginning the party can go on, in order."""
        found = (_NAME.match(path.name) for path in self.directory.iterdir())
        return tuple(sorted(int(match[1]) for match in found if match))

    def save(self, number: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write the checkpoint of a round, and remove those before the last two."""
        with whole_file(self._path(number, "safetensors")) as partial:
            # Clones, since safetensors refuses tensors that share memory.
            save_file({name: one.detach().contiguous().clone() for name, one in tensors.items()}, partial)
        with whole_file(self._path(number, "json")) as partial:
            partial.write_text(json.dumps({"round": number, **facts}, indent=2) + "\n")
        for old in [one for one in self.rounds() if one > number] + list(self.rounds()[:-KEPT]):
            # The facts first: without them the tensors count for nothing.
            self._path(old, "json").unlink(missing_ok=True)
            self._path(old, "safetensors").unlink(missing_ok=True)

    def load(self, number: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and facts of a round; raises `ConfigError` where they cannot be read."""
        try:
            facts = json.loads(self._path(number, "json").read_text())
            return load_file(self._path(number, "safetensors")), facts
        except Exception as error:
            raise ConfigError(
                f"the checkpoint of round {number} in {self.directory} cannot be read ({first_line(error)}); remove "
                "its two files to go on from the one before"
            ) from None

    def _path(self, number: int, suffix: str) -> Path:
        return self.directory / f"round-{number:06d}.{suffix}"


def optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    """An optimizer's state as named tensors."""
    if optimizer is None:
        return {}
    state = optimizer.state_dict()["state"]
    named = ((f"optimizer.{index}.{key}", value) for index in state for key, value in state[index].items())
    return {name: torch.as_tensor(value) for name, value in named}


def restore_optimizer(optimizer: torch.optim.Optimizer | None, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimizer the state that `optimizer_tensors` made."""
    if optimizer is None:
        return
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
