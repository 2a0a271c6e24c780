"""What a client keeps, and with what it may go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.parties_in_threads import CUT, model, part

from splitsec import RunSettings, SplitModel
from splitsec.errors import ConfigError
from splitsec.randomness import RunRandomness
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.client.checkpoint import ClientCheckpoints
from splitsec.training.front import FrontTrainer

SETTINGS = RunSettings(clients=("a", "b"), epochs=2)


def _save(directory: Path, seed: int = 1) -> tuple[torch.nn.Module, FrontTrainer]:
    front = SplitModel(model(), CUT).front
    kept = ClientCheckpoints(Checkpoints(directory), [front], part(), name="a")
    kept.join("0" * 32, CUT, SETTINGS)
    trainer = FrontTrainer([front], learning_rate=0.1, cut=CUT)
    kept.save(0, trainer, RunRandomness(seed), {"mark": "m"}, cut=CUT, settings=SETTINGS)
    return front, trainer


def test_a_new_start_knows_the_rounds_and_their_marks(tmp_path: Path) -> None:
    front, _ = _save(tmp_path)
    kept = ClientCheckpoints(Checkpoints(tmp_path), [front], part(), name="a")
    assert (kept.saved, kept.run, kept.marks) == ((0,), "0" * 32, ("m",))


def test_segments_are_restored_to_the_bit(tmp_path: Path) -> None:
    front, trainer = _save(tmp_path)
    before = {key: value.clone() for key, value in front.state_dict().items()}
    with torch.no_grad():
        for parameter in front.parameters():
            parameter.add_(1)
    ClientCheckpoints(Checkpoints(tmp_path), [front], part(), name="a").restore(0, trainer)
    assert all(torch.equal(value, before[key]) for key, value in front.state_dict().items())


def test_another_seed_or_other_data_are_refused(tmp_path: Path) -> None:
    front, _ = _save(tmp_path)
    kept = ClientCheckpoints(Checkpoints(tmp_path), [front], part(), name="a")
    with pytest.raises(ConfigError):
        kept.randomness(2, repeatable=False)
    with pytest.raises(ConfigError):
        ClientCheckpoints(Checkpoints(tmp_path), [front], part(9), name="a").randomness(1, repeatable=False)
    # The control: with the same seed and data it goes on.
    kept.randomness(1, repeatable=False)


def test_without_a_directory_nothing_is_kept() -> None:
    kept = ClientCheckpoints(None, [SplitModel(model(), CUT).front], part(), name="a")
    assert (kept.kept, kept.saved, kept.run) == (False, (), "")
