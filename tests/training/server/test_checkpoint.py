"""What the server keeps, and from which round all can go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.parties_in_threads import hello
from support.server_parts import ServerParts

from splitsec.errors import ConfigError
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.server.checkpoint import ServerCheckpoints, check_same_run, mark_of


def _kept(directory: Path, *rounds: int) -> ServerCheckpoints:
    run = ServerParts(directory)
    for number in rounds:
        run.state.number = number
        run.parts.save(run.state)
    return ServerCheckpoints(Checkpoints(directory), cut="1", settings=run.parts.settings)


def test_the_newest_common_round_is_gone_on_from(tmp_path: Path) -> None:
    kept = _kept(tmp_path, 0, 1)
    assert kept.common_round([(0, 1), (1,)]) == 1
    assert kept.common_round([(0,), (0, 1)]) == 0
    # Without a common one, the server's own newest: clients get the last values.
    assert kept.common_round([(5,), (6,)]) == 1


def test_another_run_is_refused_by_the_setting_that_differs(tmp_path: Path) -> None:
    _kept(tmp_path, 0)
    other = ServerParts(batch_size=8).parts.settings
    with pytest.raises(ConfigError, match="batch_size is 4 there and 8 here"):
        check_same_run(Checkpoints(tmp_path), 0, "1", other)
    fewer = ServerParts(epochs=1).parts.settings
    with pytest.raises(ConfigError, match="epochs may only grow"):
        check_same_run(Checkpoints(tmp_path), 0, "1", fewer)
    assert check_same_run(Checkpoints(tmp_path), 0, "1", ServerParts(epochs=3).parts.settings)["rounds"] == 2


def test_the_tail_is_restored_to_the_bit(tmp_path: Path) -> None:
    kept = _kept(tmp_path, 0)
    run = ServerParts()
    before = {key: value.clone() for key, value in run.parts.tail.state_dict().items()}
    for parameter in run.parts.tail.parameters():
        torch.nn.init.zeros_(parameter)
    kept.restore(0, run.parts.tail, run.parts.trainer, run.parts.rule)
    assert all(torch.equal(value, before[key]) for key, value in run.parts.tail.state_dict().items())


def test_a_mark_cannot_be_guessed_from_the_values() -> None:
    """Two marks of the same values differ: the control is that the values are the same."""
    tail = ServerParts().parts.tail
    assert mark_of(tail, []) != mark_of(tail, [])


def test_checkpoints_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    kept = _kept(tmp_path, 0)
    members = {"a": hello(run="r", rounds=(0,), marks=("other",))}
    with pytest.raises(ConfigError, match="the checkpoint of round 0 at a does not belong to the server's"):
        kept.check_marks(members, run="r", number=0, mark="mine")
    kept.check_marks(members, run="another run", number=0, mark="mine")
