"""A dataset of another package, through an entry point: the page on it runs, and commands take its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.plugins import installed_from

from splitsec.cli import main
from splitsec.data.datasets import DATASETS


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-a-dataset.md", tmp_path, monkeypatch, DATASETS) as code:
        yield code


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    assert "142 wines to train on, 36 held out" in capsys.readouterr().out


def test_the_demo_learns_from_it(installed: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--dataset", "wine", "--epochs", "12", "--simulate", "--json", str(figures)])
    result = json.loads(figures.read_text())
    # 40 % of the wines are of one grower.
    assert (result["dataset"], result["cut"]) == ("wine", "1")
    assert result["accuracy_plain"] > 0.9


@pytest.mark.slow
def test_installed_for_real_all_parties_of_the_demo_learn_from_it(installed: str, tmp_path: Path) -> None:
    """Nothing is patched: a directory with the module and the metadata that pip writes."""
    metadata = tmp_path / "wine_dataset-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wine-dataset\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[splitsec.plugins]\nwine = wine_dataset\n")
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "splitsec", "demo", "--dataset", "wine", "--epochs", "20", "--json", str(figures)]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, capture_output=True, timeout=200)
    result = json.loads(figures.read_text())
    assert result["accuracy_plain"] > 0.9
    assert result["agreement"] == 1


def test_without_the_package_the_dataset_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--dataset", "wine"])
    assert "a horizontal run has no dataset 'wine'; choose one of: digits, mnist" in capsys.readouterr().err
