"""What parties report, as lines for a program."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from splitsec.events import (
    Allowed,
    AnyEvent,
    Dropped,
    Failed,
    Finished,
    Joined,
    Listening,
    Predicted,
    RoundDone,
    from_json_line,
    size,
    to_json_lines,
    to_terminal,
    with_traffic,
)
from splitsec.transport import make_keys


def test_a_json_line_has_the_time_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    event = Joined("server", name="ward-a")
    to_json_lines()(event)
    line = capsys.readouterr().out
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(line)["time"])
    assert from_json_line(line) == event
    assert from_json_line("Traceback (most recent call last):") is None
    assert from_json_line('{"type": "Unknown"}') is None


DONE = RoundDone("server", round=2, rounds=3, loss=0.5, accuracy=0.75, bytes_sent=999, bytes_received=1500)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Listening("server", address="tcp://127.0.0.1:5"), "server listens on tcp://127.0.0.1:5"),
        (Joined("server", name="ward-a"), "server: ward-a is here"),
        (DONE, "server: round 2/3  loss 0.5000  accuracy 75.00%  sent 999 B  received 1.5 kB"),
        (Dropped("server", name="ward-a", round=1, reason="is gone"), "server: ward-a is gone; the round goes on with"),
        (Allowed("ward-a", left=1000), "ward-a: the server answers 1,000 more predictions"),
        (Predicted("ward-a", done=1, total=2), "ward-a: 1 of 2 encrypted predictions"),
        (Predicted("ward-a", done=0, total=2), ""),
        (Finished("ward-a", seconds=1.25), "ward-a is done after 1.2 s"),
        (
            Failed("ward-a", error="ConfigError", message="no\x1b[1m file", exit_code=2),
            r"ward-a failed: no\x1b[1m file",
        ),
    ],
)
def test_an_event_is_one_plain_line_on_a_terminal(event: AnyEvent, text: str) -> None:
    console = Console(file=io.StringIO(), width=40, markup=False)
    to_terminal(console)(event)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.startswith(text)
    assert shown.count("\n") == bool(text)


def test_traffic_is_added_to_the_end_of_a_round_alone() -> None:
    events: list[AnyEvent] = []
    report = with_traffic(events.append, lambda: (10, 20))
    report(DONE)
    report(Joined("server", name="ward-a"))
    assert isinstance(events[0], RoundDone)
    assert (events[0].bytes_sent, events[0].bytes_received, events[0].loss) == (10, 20, 0.5)
    assert events[1] == Joined("server", name="ward-a")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (5e12, "5000.0 GB")]
)
def test_bytes_are_said_in_powers_of_1000(count: float, text: str) -> None:
    assert size(count) == text


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
