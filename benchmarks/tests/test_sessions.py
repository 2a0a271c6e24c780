"""Several clients at once, each party a process of its own."""

import json
from pathlib import Path

import pytest

from benchmarks import sessions
from benchmarks.command import run_command
from splitsec.events import Predicted


def _run(arguments: list[str]) -> None:
    run_command(sessions.main, sessions.Options, name="sessions", description="", arguments=arguments)


class _Events:
    """Stands for the parties' processes: two clients that get a prediction at each look."""

    def __init__(self) -> None:
        self.done = 0

    def next_event(self, _seconds: float) -> Predicted:
        self.done += 1
        return Predicted(f"client-{self.done % 2}", (self.done + 1) // 2, 20)


def test_the_first_tenth_is_not_counted() -> None:
    record = sessions._record("m1", 20, ["client-0", "client-1"], _Events())  # type: ignore[arg-type]
    assert (record.sessions, record.predictions) == (2, 20)
    assert record.per_second > 0
    assert record.ms_per_prediction > 0


@pytest.mark.slow
def test_two_clients_at_once_get_all_they_ask_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nmake = lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU())\n"
    )
    target = tmp_path / "records.json"
    arguments = ["--model", f"{tmp_path / 'mine.py'}:make", "--input", "6", "--predictions", "30"]
    with pytest.raises(SystemExit) as exit_:
        _run([*arguments, "--sessions", "2", "--json", str(target)])
    assert exit_.value.code == 0
    (record,) = json.loads(target.read_text())["records"]
    assert (record["sessions"], record["predictions"]) == (2, 30)
    assert record["per_second"] > 0
    assert "2 at once: " in capsys.readouterr().out


def test_too_few_predictions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        _run(["--predictions", "5"])
    assert exit_.value.code == 2
    assert "--predictions 5: write a whole number from 20 on" in capsys.readouterr().err
