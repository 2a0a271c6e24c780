"""A local run: what is left out is what suits the dataset, and what cannot work is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitsec.errors import ConfigError
from splitsec.local.run import LocalRun, check_run, make_data, prepare
from splitsec.settings.privacy import Privacy


def test_what_is_left_out_suits_the_layout() -> None:
    assert LocalRun().names == ["client-1", "client-2", "client-3"]
    assert LocalRun(layout="vertical").names == ["client-1", "client-2"]
    assert LocalRun(layout="vertical").settings.aggregation == "none"
    assert LocalRun(privacy=Privacy(epsilon=3.0)).settings.steps_per_round == 1
    assert LocalRun(layout="model_parts").where == ""


def test_predictions_are_dealt_evenly() -> None:
    assert LocalRun(predictions=8).prediction_counts(100) == [3, 3, 2]
    assert LocalRun().prediction_counts(10) == [4, 3, 3]
    assert LocalRun(layout="vertical", predictions=8).prediction_counts(100) == [8, 0]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (LocalRun(clients=1), "at least two clients"),
        (LocalRun(layout="vertical", clients=3), "those of two clients"),
        (LocalRun(predictions=2), "2 predictions are fewer than the 3 clients"),
        (LocalRun(cut="input"), "choose a later cut"),
        (LocalRun(layout="u", cut="pool"), "a U has two cuts"),
        (LocalRun(layout="vertical", cut="pool"), "has no cut to choose"),
        (LocalRun(layout="model_parts", privacy=Privacy(epsilon=3.0)), "train it with Opacus"),
        (LocalRun(layout="star"), "there is no layout 'star'"),
        (LocalRun(epochs=0), "epoch"),
    ],
)
def test_what_cannot_work_is_refused_before_any_process(run: LocalRun, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_run(run)


def test_every_row_goes_to_one_client() -> None:
    parts = make_data(LocalRun(clients=2))
    counts = [len(part.train_labels) for part in parts]  # type: ignore[union-attr]
    assert sum(counts) + sum(len(part.test_labels) for part in parts) == 1797  # type: ignore[union-attr]
    assert max(counts) - min(counts) <= 1


def test_each_party_has_its_own_directory_and_secret(tmp_path: Path) -> None:
    prepare(LocalRun(clients=2), tmp_path)
    for name in ("server", "dealer", "client-1", "client-2"):
        assert [path.name for path in (tmp_path / name).rglob("*_secret")] == [f"{name}.key_secret"]
    assert not (tmp_path / "server" / "part.safetensors").exists()
    with pytest.raises(ConfigError):
        prepare(LocalRun(clients=2, batch_size=3), tmp_path)
