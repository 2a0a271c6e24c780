"""Several clients at once, each party a process of its own."""

import json
from pathlib import Path

import pytest

from splitsec.cli import main


def test_two_clients_at_once_get_all_they_ask_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nmake = lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU())\n"
    )
    target = tmp_path / "records.json"
    arguments = ["--model", f"{tmp_path / 'mine.py'}:make", "--input", "6", "--predictions", "30"]
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "sessions", *arguments, "--sessions", "2", "--json", str(target)])
    assert exit_.value.code == 0
    (record,) = json.loads(target.read_text())
    assert (record["sessions"], record["predictions"]) == (2, 30)
    assert record["per_second"] > 0
    assert "2 at once: " in capsys.readouterr().out


def test_too_few_predictions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "sessions", "--predictions", "5"])
    assert exit_.value.code == 2
    assert "--predictions takes at least 20" in capsys.readouterr().err
