"""Pages of the reference that are made from the code: each generator works, and leaves nothing out."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generate import api, commands, errors, markdown, messages, papers, settings
from generate.pages import PAGES

import splitsec
from splitsec.cli import _parser
from splitsec.errors import SplitsecError
from splitsec.settings.options import flag_of
from splitsec.settings.setting import describe
from splitsec.transport.codec import Message
from splitsec.version import PROTOCOL


@pytest.mark.parametrize("path", PAGES)
def test_page_begins_with_its_only_title_and_has_whole_tables(path: str) -> None:
    text = PAGES[path]()
    assert re.match(r"# \S", text)
    assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)) == 1
    width = None
    for line in text.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert width is None or cells is None or cells == width, line
        width = cells


def _import_all() -> None:
    for info in pkgutil.walk_packages(splitsec.__path__, "splitsec."):
        if ".bench" not in info.name and not info.name.endswith("__main__"):
            importlib.import_module(info.name)


def _subclasses(kind: type) -> set[type]:
    return {below for child in kind.__subclasses__() for below in {child, *_subclasses(child)}}


def test_every_message_of_the_package_is_on_the_page_with_its_fields_and_direction() -> None:
    _import_all()
    text = messages.page()
    kinds = {kind for kind in _subclasses(Message) if kind.__module__.startswith("splitsec.")}
    assert len(kinds) > 40
    for kind in kinds:
        section = text.split(f"### {kind.__name__}\n")
        assert len(section) == 2, f"{kind.__name__} is not on the page, or twice"
        body = section[1].split("\n##")[0]
        names = (*kind.__struct_fields__, *kind.tensors.declared)
        assert all(f"| `{name}` |" in body for name in names), kind.__name__
    silent = {kind.__name__ for kind in kinds if not messages.direction(kind)}
    # Answers that every party may give.
    assert silent <= {"Done", "Refused"}, f"begin the docstring with who sends it to whom: {silent}"


def test_every_error_is_under_its_exit_code() -> None:
    _import_all()
    text = errors.page()
    for kind in _subclasses(SplitsecError):
        if kind.__module__ == "splitsec.errors":
            assert f"| `{kind.__name__}` |" in text.split(f"\n## {kind.exit_code}\n")[1].split("\n## ")[0]
    control = {kind.__name__ for kind in errors.family()}
    assert "BudgetError" in control
    assert "SplitsecError" not in control


def _flags(kind: type, above: str = "") -> list[str]:
    flags = []
    for setting in describe(kind):
        inner = _flags(setting.table, f"{setting.name}.") if setting.table is not None else []
        flags += inner or [flag_of(setting, above)]
    return flags


def test_every_command_and_option_is_on_the_page() -> None:
    text = commands.page()
    for path, _, parser in commands.commands(_parser()):
        section = text.split(f"\n## {path}\n")[1].split("\n## ")[0]
        if path in commands.OF_SETTINGS:
            flags = _flags(commands.OF_SETTINGS[path])
            assert "--privacy.epsilon" in flags
            assert all(f"| `{flag}" in section for flag in flags)
            continue
        for action in parser._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert re.search(rf"{option}\b", section), f"{path} {option}"


@pytest.mark.parametrize("file", settings.PARTIES)
def test_every_setting_of_a_file_is_on_the_page_with_its_help_and_default(file: str) -> None:
    section = settings.page().split(f"\n## {file}\n")[1].split("\n## ")[0]
    for setting in describe(settings.PARTIES[file]):
        (line,) = re.findall(rf"^\| `{setting.name}` \|.*$", section, re.MULTILINE)
        assert setting.help.replace("|", "\\|") in line
        assert setting.help, f"{setting.name} needs a sentence"


def test_a_setting_that_may_grow_is_marked() -> None:
    marked = re.findall(r"^\| `(\w+)` \|.*May grow", settings.page(), re.MULTILINE)
    assert marked == ["epochs"]


def test_a_hidden_default_or_a_bar_does_not_break_a_table() -> None:
    assert markdown.table(["a"], [["x | y\nz"]]) == "| a |\n| --- |\n| x \\| y z |\n"


def test_a_docstring_in_google_style_gives_text_and_fields() -> None:
    class Example:
        """Say what it is.

        More of it.

        Attributes:
            first: one line.
            second: two
                lines.

        Raises:
            ValueError: never.
        """

    doc = markdown.read_docstring(Example)
    assert doc.text == "Say what it is.\n\nMore of it."
    assert doc.fields == {"first": "one line.", "second": "two lines."}


def test_every_citation_of_a_docstring_is_in_the_bibliography_and_every_entry_is_cited() -> None:
    bibliography = papers.bibliography()
    unknown = [
        f"{docstring.module}: ...{around}"
        for docstring in papers.docstrings()
        for around in papers.unknown_citations(docstring, bibliography)
    ]
    assert not unknown, "add the paper to docs/generate/papers.toml, or mend the citation"
    assert set(papers.places(bibliography)) == set(bibliography)


def test_control_an_unknown_paper_is_noticed() -> None:
    invented = papers.Docstring("splitsec.x", 'A. Nobody et al., "A paper of nobody", CCS 2019, section 3.')
    assert papers.unknown_citations(invented, papers.bibliography())
    known = papers.Docstring("splitsec.x", 'D. Beaver, "Efficient multiparty protocols", CRYPTO 1991.')
    assert not papers.unknown_citations(known, papers.bibliography())


def test_the_section_that_a_docstring_names_is_on_the_page_of_papers() -> None:
    assert "`splitsec.mpc.protocols.dcf`: figure 1" in papers.page()


def _written(module: str) -> set[str]:
    """Return the names that a module's text defines or imports; the site is made from text, without an import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(importlib.import_module(module).__file__ or "").read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_documented_name_can_be_imported() -> None:
    listed = api.names()
    assert set(listed["splitsec"]) == {name for name in splitsec.__all__ if not name.startswith("__")}
    for module, names in listed.items():
        for name in names:
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
            assert name in _written(module), f"{module}.{name}: the site needs an assignment of its own"
            assert f"::: {module}.{name}\n" in api.page()


def _documented() -> Iterator[tuple[str, Any]]:
    for module, names in api.names().items():
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            yield name, thing
            for member, value in vars(thing).items() if inspect.isclass(thing) else ():
                if inspect.isfunction(value) and not member.startswith("_"):
                    yield f"{name}.{member}", value


def test_arguments_in_docstrings_of_documented_names_are_those_of_the_signature() -> None:
    """The strict build refuses others; without mkdocs this test does."""
    wrong = []
    for name, thing in _documented():
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", inspect.cleandoc(thing.__doc__ or ""), re.MULTILINE)
        if section and callable(thing):
            described = re.findall(r"^    (\w[\w, ]*):", section[1], re.MULTILINE)
            wrong += [f"{name}: {entry}" for entry in described if entry not in inspect.signature(thing).parameters]
    assert not wrong, "one line of Args for each argument, under its own name"


def test_the_changelog_says_what_the_protocol_number_changed() -> None:
    assert re.search(rf"^\| {PROTOCOL} \| \w", PAGES["reference/changelog.md"](), re.MULTILINE)
