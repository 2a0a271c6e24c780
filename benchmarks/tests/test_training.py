"""Split training beside plain training, with one tiny run of each."""

from __future__ import annotations

import pytest

from benchmarks import training
from benchmarks.command import run_command
from splitsec.local.run import LocalRun


def test_split_and_plain_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([100.0, 300.0, 200.0])
    monkeypatch.setattr(training, "_split", lambda _run, _samples: (next(rates), 512.0))
    monkeypatch.setattr(training, "_plain", lambda _run, _samples, threads: 400.0 + threads)
    record = training.measure_training(LocalRun(clients=2, epochs=1, dataset="digits"), turns=3)
    assert (record.split, record.bytes_per_sample) == (200.0, 512.0)
    assert record.share == pytest.approx(record.split / record.plain)


def test_plain_training_is_as_fast_as_it_can_be() -> None:
    assert training._plain(LocalRun(clients=2, epochs=1, dataset="digits"), 64, threads=1) > 0


@pytest.mark.slow
def test_split_training_of_real_processes() -> None:
    record = training.measure_training(LocalRun(clients=2, epochs=2, dataset="digits"), samples=128, turns=1)
    assert min(record.split, record.plain, record.bytes_per_sample) > 0


def test_a_wrong_option_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run_command(training.main, training.Options, name="training", description="", arguments=["--clients", "none"])
    assert done.value.code == 2
    assert "--clients none: write whole numbers of at least 1" in capsys.readouterr().err
