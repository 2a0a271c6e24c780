"""`splitsec cuts` and what both commands for a user's own model print."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from splitsec.advisor import CutCost, Leak
from splitsec.advisor.cut_costs import Encrypted
from splitsec.cli import main
from splitsec.cli.model import _short, _show_cuts

MODEL = "splitsec.models:digits_cnn"
COSTS = [
    CutCost("input", (1, 8, 8), 64, 0, 1_234_567, 0, 20_000, None, reason="layer 'x' has no encrypted form"),
    CutCost("first", (16, 8, 8), 1024, 160, 1_000, 9_216, 10_784, Encrypted(3, 4, 2_000, 500, 0.5, 1234.6, True)),
]


def _main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _shown(costs: list[CutCost], width: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=width is not None, color_system=None)
    _show_cuts(costs, "this machine's own links", "a model", console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _row(shown: str, name: str) -> list[str]:
    return next(line.split() for line in shown.splitlines() if line.strip().startswith(f"{name} "))


def test_every_cut_is_a_row_and_a_missing_form_has_its_reason() -> None:
    shown = _shown(COSTS)
    assert _row(shown, "input") == ["input", "1x8x8", "64", "0", "1.23M", "0", "20k", "none", "[1]"]
    counts = ["1.02k", "160", "1k", "9.22k", "10.8k", "3", "2k", "500", "0.5", "1235"]
    assert _row(shown, "first") == ["first", "16x8x8", *counts]
    assert "[1] layer 'x' has no encrypted form" in shown
    assert "dominated" not in shown


def test_a_narrow_terminal_leaves_counts_out_and_says_so() -> None:
    narrow, wide = _shown(COSTS, 80), _shown(COSTS, 200)
    assert "1.23M" not in narrow
    assert "A terminal of 111 columns shows weights and multiply-adds too" in narrow
    assert "1.23M" in wide
    assert "A terminal of" not in wide


def test_leaks_stand_beside_the_costs() -> None:
    costs = [replace(COSTS[0], leak=Leak(0.25, 0.99), dominated_by="first"), COSTS[1]]
    shown = _shown(costs)
    assert _row(shown, "input")[-4:] == ["0.99", "0.25", "by", "first"]
    assert "the fraction of the inputs' variance" in shown


def test_the_command_writes_leakage_beside_the_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "cuts.json"
    assert _main("cuts", MODEL, "--input", "1,8,8", "--leakage", "digits", "--json", str(written)) == 0
    cuts = {cut["name"]: cut for cut in json.loads(written.read_text())}
    assert cuts["input"]["leak"]["recovered"] > 0.99
    assert cuts["relu3"]["leak"]["recovered"] < 0.85
    assert cuts["relu3"]["dominated_by"] is None
    assert cuts["conv1"]["dominated_by"] == "relu3"
    assert "dominated" in capsys.readouterr().out
    # Without inputs there is nothing to mark.
    assert _main("cuts", MODEL, "--input", "1,8,8", "--json", str(written)) == 0
    assert all(cut["leak"] is None and cut["dominated_by"] is None for cut in json.loads(written.read_text()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rtt -1", "--rtt takes milliseconds from 0 on"),
        ("--bandwidth 0", "--bandwidth megabits a second above 0"),
        ("--plot cuts.nothing", "cannot draw cuts.nothing"),
        ("--leakage nofile.npz", "cannot read nofile.npz"),
        ("--leakage breast", "the dataset 'breast' holds columns"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("cuts", MODEL, "--input", "1,8,8", *arguments.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (999.6, "1k"), (1_234_567, "1.23M"), (5e12, "5e+03G")]
)
def test_numbers_are_short(count: float, text: str) -> None:
    assert _short(count) == text
