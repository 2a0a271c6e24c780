"""The documentation's code runs, and what it names exists."""

import json
import os
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from generate.pages import PAGES as GENERATED

from benchmarks import inference, private_training, sessions, torchvision_models, training
from splitsec.cli import main
from splitsec.settings.options import flag_of
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.setting import describe

ROOT = Path(__file__).resolve().parents[1]


DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# What a page's Python code must print, so that a page whose code does nothing fails.
PRINTS = {
    "how-to/use-the-python-api.md": r"(?s)rounds a prediction.*rounds a prediction",
    "how-to/train-with-many-clients.md": r"\[\d+, \d+, \d+\]",
    "how-to/train-on-columns.md": r"(?s)torch\.Size\(\[5, 2\]\).*\[-1\.,  2\.\]",
    "how-to/crypten.md": r"Cost\(rounds=\d+",
    "how-to/train-with-a-privacy-budget.md": r"epsilon \d\.\d+ after 50 steps",
}
TUTORIAL = DOCS / "tutorial" / "own-model.md"


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def _said(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what Python code prints, run in a module of its own: another process would have to load torch anew."""
    capsys.readouterr()
    exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


@pytest.mark.parametrize("page", PRINTS)
def test_python_code_of_a_page_runs_as_it_stands(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(PRINTS[page], _said("\n".join(_blocks(DOCS / page, "python")), capsys))


def test_no_page_has_python_code_that_no_test_runs() -> None:
    with_code = {path for path in PAGES if _blocks(path, "python")}
    run_here = {DOCS / page for page in PRINTS} | {TUTORIAL}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    forgotten = {path.name for path in with_code - run_here if path.name not in tests}
    assert not forgotten, "list the page in PRINTS, or run its code in a test that names it"


def test_the_budget_of_the_page_on_privacy_is_spent_and_not_exceeded(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = _blocks(DOCS / "how-to" / "train-with-a-privacy-budget.md", "python")
    spent = re.search(r"epsilon (\d\.\d+) after 50 steps", _said(code, capsys))
    # The accountant keeps the budget, and how much of it noise leaves over is its own affair.
    assert spent is not None
    assert 2.9 < float(spent[1]) <= 3


def test_the_page_on_columns_has_every_setting_of_columns() -> None:
    path = DOCS / "how-to" / "train-on-columns.md"
    known = {setting.name for kind in (ServerConfig, ClientConfig) for setting in describe(kind)}
    for block in _blocks(path, "toml"):
        assert set(tomllib.loads(block)) <= known
    text = path.read_text()
    assert all(f"`{name}" in text for name in ("standardise", "codes", "ask", "train", "weights"))


def _typed(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of the page and return what it says; `|| true` lets it fail.

    A program runs here, where torch is loaded: to load it for each command anew takes most of the test's time.
    """
    capsys.readouterr()
    command, _, may_fail = line.partition("||")
    program, *words = shlex.split(command)
    code: object = 0
    if program == "python":
        runpy.run_path(words[0], run_name="__main__")
    else:
        assert program == "splitsec"
        with pytest.raises(SystemExit) as ended:
            main(words)
        code = ended.value.code
    said = "".join(capsys.readouterr())
    assert not code or may_fail, f"{line}\n{said}"
    return said


def test_the_tutorial_runs_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block in its order: files are written, Python is run, commands are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # For the processes that commands start.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    # What the page imports is in no other test's way afterwards.
    monkeypatch.setitem(sys.modules, "my_model", None)
    del sys.modules["my_model"]
    text = TUTORIAL.read_text()
    said = ""
    for language, code in re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL):
        named = re.match(r"# (\w+\.py)\n", code)
        if named:
            (tmp_path / named[1]).write_text(code)
        elif language == "python":
            said += _said(code, capsys)
        else:
            said += "".join(_typed(line, capsys) for line in code.strip().splitlines())
    assert "would send more than one value (relu, conv2)" in said or "the nearest clean cut is" in said
    assert "100.00% of 20" in said
    assert said.count("ms a prediction") == 2
    assert (tmp_path / "cuts.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "out.json").read_text())["labels"]) == 20


@pytest.mark.parametrize(("index", "kind"), [(0, DealerConfig), (1, ServerConfig), (2, ClientConfig)])
def test_the_toml_examples_are_valid(index: int, kind: type) -> None:
    text = _blocks(DOCS / "how-to" / "run-parties-by-hand.md", "toml")[index]
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
    """Those of the site are checked by `mkdocs build --strict` as well, with their anchors."""
    generated = {DOCS / page for page in GENERATED}
    for page in [*ROOT.glob("*.md"), *PAGES]:
        for target in re.findall(r"\]\(([^)#:\s]+)[^):]*\)", page.read_text()):
            path = Path(os.path.normpath(page.parent / target))
            # A reader of the repository has no generated pages: outside of the site, link to reference/index.md.
            assert path.exists() or (path in generated and page in PAGES), f"{page.name}: {target}"


def test_files_that_pages_name_exist() -> None:
    named = r"`((?:splitsec|tests|docs|launch|examples|benchmarks)/[\w/.-]+)`"
    for page in [*ROOT.glob("*.md"), *PAGES]:
        for target in re.findall(named, page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_every_option_that_a_page_names_exists() -> None:
    """Commands in blocks of code, and options in a line of text."""
    options = set(re.findall(r"(?<=[` ])--[a-z][a-z.-]*", GENERATED["reference/commands.md"]())) | {"--help"}
    programs = (inference, sessions, training, private_training, torchvision_models)
    options |= {flag_of(setting) for program in programs for setting in describe(program.Options)}
    others = ("pip ", "pytest ", "mkdocs ", "systemctl ", "ruff ")
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text()
        code = re.findall(r"^splitsec .*$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
        for line in code:
            if not any(word in line for word in others):
                unknown = set(re.findall(r"(?<!\S)--[a-z][a-z.-]*", line)) - options
                assert not unknown, f"{page.name}: {line}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = re.findall(r"[\w/-]+\.md", navigation)
    pages = {str(path.relative_to(DOCS)) for path in PAGES} | set(GENERATED)
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", ["docs/how-to/index.md", "CONTRIBUTING.md"])
def test_every_page_on_adding_something_is_listed(page: str) -> None:
    listed = set(re.findall(r"add-[\w-]+\.md", (ROOT / page).read_text()))
    assert listed == {path.name for path in (DOCS / "how-to").glob("add-*.md")}


@pytest.mark.parametrize(
    "phrase", ["gradient by ", "so many", "of whom", "nobody", "whoever", "theirs", "what came of"]
)
def test_no_page_has_a_phrase_that_a_newcomer_reads_twice(phrase: str) -> None:
    for page in [*ROOT.glob("*.md"), *PAGES]:
        assert phrase not in " ".join(page.read_text().split()).lower(), page.name


@pytest.mark.parametrize("phrase", ["gradient by ", "so many", "of whom", "nobody's", "what came of"])
def test_no_docstring_or_comment_has_one_either(phrase: str) -> None:
    files = [
        path for folder in ("splitsec", "benchmarks", "examples", "launch") for path in (ROOT / folder).rglob("*.py")
    ]
    # The control: the files are read, and a phrase of theirs would be seen.
    assert any("gradient with respect to" in path.read_text() for path in files)
    for path in files:
        assert phrase not in " ".join(path.read_text().replace("#", " ").split()).lower(), path.relative_to(ROOT)


def test_readme_fits_a_terminal() -> None:
    assert max(len(line) for line in (ROOT / "README.md").read_text().splitlines()) <= 110
