"""Comparing two results pairs what was measured alike, and refuses what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import compare, main
from benchmarks.records import write_result
from splitsec.apps.workload import Record
from splitsec.errors import ConfigError


def _record(online: float, **changed: Any) -> Record:
    fields: dict[str, Any] = {
        "engine": "splitsec",
        "provider": "dealer",
        "model": "m1",
        "cut": "input",
        "batch": 1,
        "runs": 5,
        "threads": 1,
        "plaintext_ms": 0.1,
        "online_ms": online,
        "total_ms": 2 * online,
        "max_abs_error": 1e-4,
        "agreement": 1.0,
    }
    return Record(**{**fields, **changed})


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_result(old, [_record(2.0), _record(4.0, batch=32)], benchmark="inference", arguments=["--runs", "5"])
    write_result(new, [_record(3.0), _record(9.0, model="m2")], benchmark="inference", arguments=["--runs", "5"])
    return old, new


def test_records_of_the_same_thing_are_paired(results: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    ((what, quotients),) = compare(*results)
    assert what == "splitsec, m1, input, 1, 1"
    assert quotients == {"plaintext_ms": 1.0, "online_ms": 1.5, "total_ms": 1.5}
    assert main([str(path) for path in results]) == 0
    assert "1.50" in capsys.readouterr().out


def test_a_result_says_on_what_it_was_measured_and_how(results: tuple[Path, Path]) -> None:
    content = json.loads(results[0].read_text())
    assert content["command"] == "python -m benchmarks.inference --runs 5"
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["libraries"]["torch"]


def test_results_of_different_machines_are_refused(results: tuple[Path, Path]) -> None:
    content = json.loads(results[1].read_text())
    content["machine"]["cores"] = 999
    results[1].write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="different machines"):
        compare(*results)


def test_what_is_no_result_is_refused(results: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    with pytest.raises(ConfigError, match="is no result of a benchmark"):
        compare(tmp_path / "text", results[0])
    empty = tmp_path / "empty.json"
    write_result(empty, [], benchmark="inference", arguments=[])
    with pytest.raises(ConfigError, match="nothing in common"):
        compare(results[0], empty)
