"""A layout of another package, through an entry point: the page on it runs, and the layout does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.plugins import installed_from

from splitsec import RunSettings
from splitsec.errors import ConfigError
from splitsec.settings.run import check_run_settings
from splitsec.training.layouts import LAYOUTS, layout_of


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-a-layout.md", tmp_path, monkeypatch, LAYOUTS) as code:
        yield code


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    assert "2 rounds in the layout of another package" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["eager", None])
def test_no_client_waits_for_another(layout: str | None, installed: str) -> None:
    """The control is the horizontal layout, which waits."""
    settings = RunSettings(clients=("a", "b"), layout=layout)
    learned: list[str] = []

    class Watched(layout_of(settings, "1").gatherer):  # type: ignore[misc]
        def learn_from(self, names: list[str]) -> list[object]:
            learned.extend(names)
            for name in names:
                self._queues[name].popleft()
            return []

    steps = Watched(None, cut="1", settings=settings)
    steps.begin({"a": 4, "b": 4})
    steps._queues["a"].append(object())
    assert not list(steps.step_when_complete(["a", "b"]))
    assert learned == (["a"] if layout else [])


def test_without_the_package_the_layout_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no layout 'eager'; choose one of: horizontal, u, vertical"):
        layout_of(RunSettings(clients=("a", "b"), layout="eager"), "1")


def test_a_layout_for_rows_takes_no_columns() -> None:
    with pytest.raises(ConfigError, match="layout = 'eager' is not for columns: leave join out"):
        check_run_settings(RunSettings(clients=("a", "b"), layout="eager", join="sum", aggregation="none"))
