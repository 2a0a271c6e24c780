"""`splitsec demo`: options that do nothing are refused before anything starts."""

from __future__ import annotations

import pytest

from splitsec.cli import main


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--drop", "0.5"], "--drop needs --simulate"),
        (["--simulate", "--predictions", "3"], "--predictions does nothing with --simulate"),
        (["--clients", "1"], "at least two clients"),
        (["--layout", "star"], "there is no layout 'star'"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert reason in complaint
    assert "Traceback" not in complaint
