"""`splitsec bench MODEL`: what is wrong is said before anything starts."""

from __future__ import annotations

import pytest

from splitsec.cli import main


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["inference"], "is a program of the checkout now: python -m benchmarks.inference"),
        (["m1", "--runs", "0"], "take whole numbers of at least 1"),
        (["m1", "--batch-size", "0"], "--batch-size 0: write whole numbers"),
        (["m9"], "m9"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code not in (0, None)
    complaint = capsys.readouterr().err
    assert reason in complaint
    assert "Traceback" not in complaint
