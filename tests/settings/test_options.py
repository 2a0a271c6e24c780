"""Options of a command, made from settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from splitsec.settings.options import flag_of, parse_options
from splitsec.settings.setting import Bounds, describe, setting


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A table."""

    epsilon: Annotated[float, setting("Budget.", Bounds(above=0))] = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a test."""

    batch_size: Annotated[int, setting("Rows.", Bounds(least=1))] = 4
    privacy: Annotated[Inner, setting("Privacy.")] = Inner()
    loud: Annotated[bool, setting("Say more.")] = False


def _parse(*arguments: str) -> Options:
    return parse_options(Options, arguments, prog="splitsec test", description="Test.")


def test_options_are_the_settings_with_hyphens() -> None:
    assert [flag_of(described) for described in describe(Options)] == ["--batch-size", "--privacy", "--loud"]
    assert _parse() == Options()
    parsed = _parse("--batch-size", "8", "--privacy.epsilon", "0.5", "--loud")
    assert parsed == Options(batch_size=8, privacy=Inner(epsilon=0.5), loud=True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--batch-size", "x"], "--batch-size"),
        (["--batch-size", "0"], "--batch-size 0: write"),
        (["--privacy.epsilon", "0"], "--privacy.epsilon 0: write"),
        (["--topology", "u"], "--topology is called --layout now"),
        (["--speed", "3"], "--speed"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_code_is_two(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _parse(*arguments)
    assert ended.value.code == 2
    complaint = capsys.readouterr().err
    assert reason in complaint
    assert complaint.startswith("splitsec: ")
    assert len(complaint.strip().splitlines()) == 1
