"""The documentation's code runs, and what it names exists."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from splitsec.parties.config import ClientConfig, DealerConfig, ServerConfig

ROOT = Path(__file__).resolve().parents[1]


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def _said(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What Python code prints, in a module of its own: another process would have to load torch anew."""
    capsys.readouterr()
    exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_the_api_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = _blocks(ROOT / "docs" / "api.md", "python")
    assert _said(code, capsys).count("rounds a prediction") == 2


def test_the_page_on_federated_training_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(_blocks(ROOT / "docs" / "federated.md", "python"))
    assert "torch.Size([5, 2])" in _said(code, capsys)


def test_the_page_on_columns_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "docs" / "columns.md"
    (code,) = _blocks(path, "python")
    assert "[-1.,  2.]" in _said(code, capsys)
    for block in _blocks(path, "toml"):
        fields = {**ServerConfig.__annotations__, **ClientConfig.__annotations__}
        assert set(tomllib.loads(block)) <= set(fields)
    # Every setting of a client that is for columns alone is on the page.
    text = path.read_text()
    assert all(f"`{name}" in text for name in ("standardise", "codes", "ask", "train", "weights"))


def test_the_page_on_privacy_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = _blocks(ROOT / "docs" / "privacy.md", "python")
    spent = re.search(r"epsilon (\d\.\d+) after 50 steps", _said(code, capsys))
    # The accountant keeps the budget, and how much of it noise leaves over is its own affair.
    assert spent is not None
    assert 2.9 < float(spent[1]) <= 3


def test_the_tutorial_runs_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block in its order: files are written, Python is run, commands are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # What the page imports is in no other test's way afterwards.
    monkeypatch.setitem(sys.modules, "my_model", None)
    del sys.modules["my_model"]
    text = (ROOT / "docs" / "own-model.md").read_text()
    # The test's processors are few, and torch's threads would wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    said = ""
    for language, code in re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL):
        named = re.match(r"# (\w+\.py)\n", code)
        if named:
            (tmp_path / named[1]).write_text(code)
            continue
        if language == "python":
            said += _said(code, capsys)
            continue
        names = f'splitsec() {{ "{sys.executable}" -m splitsec "$@"; }}\npython() {{ "{sys.executable}" "$@"; }}\n'
        command = ["bash", "-ec", names + code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        said += done.stdout + done.stderr
    assert "would send more than one value (relu, conv2)" in said or "the nearest clean cut is" in said
    assert "100.00% of 20" in said
    assert said.count("ms a prediction") == 2
    assert (tmp_path / "cuts.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "out.json").read_text())["labels"]) == 20


@pytest.mark.parametrize(("index", "kind"), [(0, DealerConfig), (1, ServerConfig), (2, ClientConfig)])
def test_the_toml_examples_are_valid(index: int, kind: type) -> None:
    text = _blocks(ROOT / "docs" / "by-hand.md", "toml")[index]
    msgspec.convert(tomllib.loads(text), kind)


def test_every_dependency_is_named_with_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    readme = (ROOT / "README.md").read_text().split("What it depends on")[1]
    for requirement in wanted:
        assert re.match(r"[\w-]+", requirement)[0] in readme
        # `.ci/oldest` installs exactly what stands here.
        assert re.fullmatch(r"[\w-]+(>=|==)[\d.]+", requirement), f"{requirement} has no oldest release"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
