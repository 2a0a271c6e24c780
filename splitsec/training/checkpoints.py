"""Checkpoints: what a party needs to go on from the beginning of a round, written as a whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from splitsec.errors import ConfigError, first_line
from splitsec.files import whole_file
from splitsec.settings.run import RunSettings
from splitsec.settings.setting import identity
from splitsec.tensors import write_tensors

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
        """Return the rounds at whose beginning the party can go on, in order."""
        matches = (_NAME.match(path.name) for path in self.directory.iterdir())
        return tuple(sorted(int(match[1]) for match in matches if match))

    def save(self, number: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write the checkpoint of a round, and remove those before the last two.

        Raises:
            ConfigError: it cannot be written; those before it are still there.
        """
        try:
            self._write(number, tensors, facts)
        except (OSError, SafetensorError) as error:
            known = self.rounds() if self.directory.is_dir() else ()
            left = f"from round {known[-1]}" if known else "from the beginning"
            raise ConfigError(
                f"cannot write the checkpoint of round {number} in {self.directory}: "
                f"{getattr(error, 'strerror', None) or first_line(error)}; make room for it or mend the directory, and "
                f"start again: the run then goes on {left}"
            ) from None

    def _write(self, number: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        write_tensors(self._path(number, "safetensors"), tensors)
        with whole_file(self._path(number, "json")) as partial:
            partial.write_text(json.dumps({"round": number, **facts}, indent=2) + "\n")
        for old in [later for later in self.rounds() if later > number] + list(self.rounds()[:-KEPT]):
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


class MemoryCheckpoints(Checkpoints):
    """The last two checkpoints of a party in memory, for going on with a server that is started again."""

    def __init__(self) -> None:
        # For messages alone: nothing is written.
        self.directory = Path("memory")
        self._kept: dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}

    def rounds(self) -> tuple[int, ...]:
        """Return the rounds at whose beginning the party can go on, in order."""
        return tuple(sorted(self._kept))

    def save(self, number: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the checkpoint of a round, and forget those before the last two."""
        self._kept = {old: kept for old, kept in self._kept.items() if old < number}
        self._kept[number] = {name: value.detach().clone() for name, value in tensors.items()}, dict(facts)
        for old in self.rounds()[:-KEPT]:
            del self._kept[old]

    def load(self, number: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and facts of a round."""
        return self._kept[number]


def optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    """Return an optimizer's state as named tensors."""
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


def identity_of(cut: str, settings: RunSettings) -> dict[str, Any]:
    """Return the settings that identify a run: it goes on from a checkpoint only where they are all equal.

    That is every setting but those that may grow, such as the number of epochs.
    """
    return {"cut": cut, **identity(settings)}


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
