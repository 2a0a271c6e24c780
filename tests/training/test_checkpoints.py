from pathlib import Path

import pytest
import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.files import whole_file
from splitsec.training.checkpoints import Checkpoints, optimizer_tensors, restore_optimizer


def test_the_last_two_are_kept_and_come_back(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "deep" / "server")
    assert kept.rounds() == ()
    for number in range(5):
        kept.save(number, {"x": torch.full((2,), number)}, {"cut": "pool"})
    assert kept.rounds() == (3, 4)
    tensors, facts = kept.load(4)
    assert tensors["x"].tolist() == [4, 4]
    assert facts == {"round": 4, "cut": "pool"}
    # A run that goes on from an earlier round leaves nothing of the later ones.
    kept.save(3, {"x": torch.zeros(1)}, {})
    assert kept.rounds() == (3,)
    assert sorted(path.suffix for path in kept.directory.iterdir()) == [".json", ".safetensors"]


def test_a_checkpoint_is_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(0, {"x": torch.zeros(1)}, {})

    class Killed(Exception):
        pass

    def killed(*_args: object) -> None:
        raise Killed

    for place in ("splitsec.tensors.save_file", "splitsec.files._sync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            with pytest.raises(Killed):
                kept.save(1, {"x": torch.ones(1)}, {})
        assert kept.rounds() == (0,)
    # Killed between the two files: tensors without facts count for nothing.
    with whole_file(tmp_path / "round-000001.safetensors") as partial:
        partial.write_bytes(b"half")
    assert kept.rounds() == (0,)
    assert kept.load(0)[0]["x"].item() == 0


def test_a_broken_one_says_what_to_do(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(0, {"x": torch.zeros(1)}, {})
    (tmp_path / "round-000000.safetensors").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="round 0 .* cannot be read .*; remove its two files"):
        kept.load(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep checkpoints"):
        Checkpoints(tmp_path / "file" / "x")


def test_an_optimizer_goes_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizers = [torch.optim.Adam(one.parameters(), lr=0.1) for one in (first, second)]

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        step(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    restore_optimizer(optimizers[1], optimizer_tensors(optimizers[0]))
    for module, optimizer in zip((first, second), optimizers, strict=True):
        step(module, optimizer)
    assert torch.equal(first.weight, second.weight)
    assert optimizer_tensors(None) == {}
