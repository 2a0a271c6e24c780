"""`splitsec bench MODEL` as a user runs it: real processes, one table, records in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitsec.cli import main


def test_a_model_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nmake = lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))\n"
    )
    target = tmp_path / "records.json"
    arguments = [f"{tmp_path / 'mine.py'}:make", "--cut", "0", "--input", "6", "--runs", "3", "--json", str(target)]
    with pytest.raises(SystemExit) as done:
        main(["bench", *arguments])
    assert done.value.code == 0
    (record,) = json.loads(target.read_text())
    assert record["max_abs_error"] < 1e-3
    assert record["total_ms"] >= record["online_ms"] > 0
    # Exact counts a layer add up to the counters of the run.
    assert sum(layer["rounds"] for layer in record["layers"]) == record["rounds"]
    shown = capsys.readouterr().out
    assert "cut at '0'" in shown
    assert "relu" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "unknown model 'nope'; choose one of m1"),
        (["x.py:y"], "say the shape of one input"),
        (["m1", "--batch-size", "0"], "whole numbers of at least 1"),
        (["m1", "--runs", "0"], "whole numbers of at least 1"),
        (["m1", "--json", "/nowhere/x"], "cannot write"),
        (["inference"], "python -m benchmarks.inference"),
        (["privacy"], "python -m benchmarks.private_training"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["bench", *arguments])
    assert done.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
