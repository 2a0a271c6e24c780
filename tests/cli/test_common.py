"""What commands have in common."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from splitsec.cli.common import check_writable, numbers, terminated_like_interrupted, write_json
from splitsec.errors import ConfigError


def test_numbers_stand_with_commas_between_them() -> None:
    assert numbers("1,32", "--batch") == (1, 32)
    for text in ("", "0", "1,,2", "x", "1.5", "-3"):
        with pytest.raises(ConfigError, match="--batch .*: write whole numbers of at least 1"):
            numbers(text, "--batch")


def test_a_file_that_cannot_be_written_is_known_before_the_run(tmp_path: Path) -> None:
    check_writable(None)
    check_writable(tmp_path / "results.json")
    with pytest.raises(ConfigError, match="it is a directory; name a file in it"):
        check_writable(tmp_path)
    with pytest.raises(ConfigError, match="is not a directory that can be written to"):
        check_writable(tmp_path / "nowhere" / "results.json")


def test_a_file_is_written_as_a_whole(tmp_path: Path) -> None:
    write_json(None, {})
    write_json(tmp_path / "results.json", {"rounds": 3})
    assert json.loads((tmp_path / "results.json").read_text()) == {"rounds": 3}
    with pytest.raises(TypeError):
        write_json(tmp_path / "results.json", object())
    assert json.loads((tmp_path / "results.json").read_text()) == {"rounds": 3}


def test_a_command_that_is_ended_cleans_up() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with terminated_like_interrupted(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
