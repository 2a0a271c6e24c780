"""The programs in `examples/`, each with small settings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quickstart() -> None:
    accuracy = _example("quickstart").run()
    assert set(accuracy) == {"ward-a", "ward-b"}
    assert min(accuracy.values()) > 0.6


def test_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    split = _example("own_model").run()
    assert split.cut == "stem"
    said = capsys.readouterr().out
    assert "ms a prediction" in said
    assert "in a U the client also holds: fc2.weight, fc2.bias" in said


def test_vertical_hospitals() -> None:
    assert _example("vertical_hospitals").run(predictions=32) > 0.9


def test_private_training() -> None:
    accuracy, epsilon = _example("private_training").run()
    assert accuracy > 0.7
    assert 2.9 < epsilon <= 3


def test_every_example_has_a_test_and_a_line_in_the_readme() -> None:
    tests, readme = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"def test_{path.stem}(" in tests
        assert f"| `{path.name}` |" in readme
        assert len(path.read_text().splitlines()) <= 100
