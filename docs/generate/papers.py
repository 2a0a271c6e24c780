"""The bibliography: every paper that a docstring of the package cites, with the places and the sections."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from generate.markdown import code

ROOT = Path(__file__).resolve().parents[2]
INTRODUCTION = """# Papers

What the code follows, and where. The list is made from the docstrings of the package, which also say what was changed.
"""

_YEAR = r"\b(?:19|20)\d\d\b"
# What may follow the year of a citation: `), section 4.1`, ` (AQ-SGD), algorithm 2`.
_SECTION = re.compile(r"^\)?(?: \([\w-]+\))?,? ((?:sections?|figure|algorithm|theorem|definition) [\w.-]*\w)")


@dataclass(frozen=True)
class Paper:
    """One entry of papers.toml."""

    authors: str
    title: str
    venue: str
    year: int
    short: tuple[str, ...] = ()

    def citations(self, text: str) -> Iterator[re.Match[str]]:
        """Yield where `text` cites this paper: its title or a short name, and its year before any other year."""
        names = "|".join(re.escape(name) for name in (self.title, *self.short))
        yield from re.finditer(rf"(?:{names})(?:(?!{_YEAR}).){{0,160}}?\b{self.year}\b", text, re.IGNORECASE)


@dataclass(frozen=True)
class Docstring:
    """A docstring of the package, on one line."""

    module: str
    text: str


def bibliography() -> list[Paper]:
    """Return the papers of papers.toml."""
    entries = tomllib.loads(Path(__file__).with_name("papers.toml").read_text())["paper"]
    return [Paper(**{**entry, "short": tuple(entry.get("short", ()))}) for entry in entries]


def docstrings(package: Path = ROOT / "splitsec") -> Iterator[Docstring]:
    """Yield every docstring of the package."""
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield Docstring(module, " ".join(text.split()))


def unknown_citations(docstring: Docstring, papers: list[Paper]) -> list[str]:
    """Return what is around each year of a docstring that belongs to no paper of the bibliography."""
    known = {match.end() for paper in papers for match in paper.citations(docstring.text)}
    return [
        docstring.text[max(0, year.start() - 80) : year.end()]
        for year in re.finditer(_YEAR, docstring.text)
        if year.end() not in known
    ]


def places(papers: list[Paper], package: Path = ROOT / "splitsec") -> dict[Paper, dict[str, set[str]]]:
    """Return for each paper the modules that cite it, with the sections that they name."""
    where: dict[Paper, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for docstring in docstrings(package):
        for paper in papers:
            for match in paper.citations(docstring.text):
                section = _SECTION.match(docstring.text[match.end() :])
                where[paper][docstring.module] |= {section[1]} if section else set()
    return where


def page() -> str:
    """Return the page as Markdown."""
    papers = bibliography()
    where = places(papers)
    parts = [INTRODUCTION]
    for paper in sorted(where, key=lambda paper: (paper.title.lower(), paper.year)):
        parts.append(f"- **{paper.title}.** {paper.authors}. {paper.venue}, {paper.year}.\n")
        for module, sections in where[paper].items():
            parts.append(f"    - {code(module)}" + (f": {', '.join(sorted(sections))}" if sections else ""))
        parts.append("")
    return "\n".join(parts)
