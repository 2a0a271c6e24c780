"""Two runs of the same clients, with one of them and without: what the difference of their sums says about that one."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from splitsec import Part, RunSettings, SplitModel, randomness
from splitsec.errors import ConfigError
from splitsec.local.simulation import Simulated, SimulationSettings, simulate
from splitsec.training.aggregation import average

NAMES = ("ada", "bob", "eve")


class Watched:
    """Runs of the same clients and weights; a run's first sum, as the server sees it, and what eve put into it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        inputs = torch.randn(60, 8)
        labels = (inputs[:, 0] > 0).long()
        self.parts = {name: Part(inputs[at::3], labels[at::3], inputs[:0], labels[:0]) for at, name in enumerate(NAMES)}
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))
        self.sums: list[torch.Tensor] = []
        self.uploads: list[torch.Tensor] = []
        combine, mask_upload = average.combine, average.mask_upload

        def keep_sum(uploads: Any, mask_sum: Any, *, total_weight: int) -> torch.Tensor:
            found = combine(uploads, mask_sum, total_weight=total_weight)
            self.sums.append(found * total_weight)
            return found

        def keep_upload(flat: torch.Tensor, *, weight: int, seed: bytes, round_number: int) -> torch.Tensor:
            self.uploads.append(flat * weight)
            return mask_upload(flat, weight=weight, seed=seed, round_number=round_number)

        monkeypatch.setattr(average, "combine", keep_sum)
        monkeypatch.setattr(average, "mask_upload", keep_upload)

    def run(self, names: tuple[str, ...], *, batch_size: int = 10, epochs: int = 1, **options: Any) -> Simulated:
        self.sums.clear()
        self.uploads.clear()
        split = SplitModel(copy.deepcopy(self.model), "2")
        return simulate(
            split.tail,
            lambda _name: [copy.deepcopy(split.front)],
            {name: self.parts[name] for name in names},
            cut=split.cut,
            settings=RunSettings(clients=names, epochs=epochs, batch_size=batch_size, steps_per_round=1),
            how=SimulationSettings(seed=0, **options),
        )

    def error(self, **options: Any) -> float:
        """How far the server's guess of eve's update is from it, relative to its size."""
        self.run(NAMES, **options)
        sum_of_all, true = self.sums[0], self.uploads[2]
        self.run(NAMES[:2], **options)
        front = SplitModel(copy.deepcopy(self.model), "2").front
        begun = torch.cat([parameter.detach().flatten() for parameter in front.parameters()]).double() * 20
        return float((sum_of_all - self.sums[0] - true).norm() / (true - begun).norm())


def test_two_runs_do_not_open_the_update_of_the_client_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Watched(monkeypatch).error() > 0.3


def test_control_two_repeatable_runs_open_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Watched(monkeypatch).error(repeatable=True) < 1e-3


def test_a_batch_of_all_rows_is_said_to_open_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No order of rows can hide it."""
    watched = Watched(monkeypatch)
    assert watched.error(batch_size=20) < 1e-3
    assert "every step takes all 20 rows of eve" in caplog.text
    caplog.clear()
    watched.run(NAMES)
    assert "takes all" not in caplog.text


def _weights(found: Simulated) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in found.segments["ada"][0].parameters()])


def test_a_run_that_was_killed_goes_on_with_its_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, dropout=0.2)
    drawn = 0

    def draw() -> bytes:
        nonlocal drawn
        drawn += 1
        return drawn.to_bytes(16, "big")

    monkeypatch.setattr(randomness, "fresh_seed", draw)
    whole = watched.run(NAMES, epochs=3)

    class Killed(Exception):
        pass

    def dying(*given: Any, **named: Any) -> torch.Tensor:
        if len(watched.sums) == 4:
            raise Killed
        return combine(*given, **named)

    drawn, combine = 0, average.combine
    with monkeypatch.context() as patch:
        patch.setattr(average, "combine", dying)
        with pytest.raises(Killed):
            watched.run(NAMES, epochs=3, checkpoints=tmp_path)
    resumed = watched.run(NAMES, epochs=3, checkpoints=tmp_path)
    assert torch.equal(_weights(resumed), _weights(whole))
    with pytest.raises(ConfigError, match="are of a run with repeatable = false: set it back"):
        watched.run(NAMES, epochs=3, checkpoints=tmp_path, repeatable=True)
    # The control: another run, with secrets of its own, ends elsewhere.
    assert not torch.equal(_weights(watched.run(NAMES, epochs=3)), _weights(whole))


@pytest.mark.parametrize("repeatable", [False, True])
def test_another_run_has_another_secret_whatever_checkpoints_lie_about(
    repeatable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    watched.run(NAMES, checkpoints=tmp_path, repeatable=repeatable)
    before = watched.uploads[2]
    # The server begins anew.
    shutil.rmtree(tmp_path / "server")
    watched.run(NAMES, checkpoints=tmp_path, repeatable=repeatable)
    # The control is the repeatable run.
    assert torch.equal(watched.uploads[2], before) == repeatable


def test_secrets_of_runs() -> None:
    first = randomness.RunRandomness(3)
    assert randomness.RunRandomness(3).order != first.order
    assert randomness.RunRandomness(3, secret=first.secret).order == first.order
    assert randomness.RunRandomness(3, repeatable=True).order == 3
    with pytest.raises(ConfigError, match="needs a seed"):
        randomness.RunRandomness(None, repeatable=True)
