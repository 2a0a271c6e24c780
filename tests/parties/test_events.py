"""What parties report, as lines for a program."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from splitsec.parties.events import Joined, Listening, from_json_line, to_json_lines
from splitsec.transport import make_keys


def test_a_json_line_has_the_time_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    event = Joined("server", name="ward-a")
    to_json_lines()(event)
    line = capsys.readouterr().out
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(line)["time"])
    assert from_json_line(line) == event


def _dealer(directory: Path, *options: str, stdin: int) -> subprocess.Popen[str]:
    make_keys(directory / "keys", ["dealer", "server"])
    (directory / "dealer.toml").write_text('address = "tcp://127.0.0.1:*"\n')
    command = [sys.executable, "-m", "splitsec", "dealer", "--config", str(directory / "dealer.toml")]
    process = subprocess.Popen(
        [*command, "--events", "json", *options], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert isinstance(from_json_line(process.stdout.readline()), Listening)
    return process


def test_a_party_without_standard_input_goes_on(tmp_path: Path) -> None:
    """Services, containers and nohup give /dev/null."""
    process = _dealer(tmp_path, stdin=subprocess.DEVNULL)
    try:
        time.sleep(1)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_control_a_party_ends_with_its_launcher_where_that_was_asked_for(tmp_path: Path) -> None:
    process = _dealer(tmp_path, "--end-with-input", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 130
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
