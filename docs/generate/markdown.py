"""Pieces of Markdown, and what a docstring in Google style says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# What the page of a generated reference begins with, so that nobody edits it.
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Example|Examples|Note):$")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells may hold anything but are written on one line."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return `text` as code within a line."""
    return f"`{text}`" if text else ""


@dataclass
class Docstring:
    """The paragraphs of a docstring, and its Args or Attributes by name."""

    text: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def read_docstring(thing: object) -> Docstring:
    """Return what the docstring of a class or function says: its paragraphs, and its fields by name."""
    doc = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    paragraphs: list[str] = []
    fields: dict[str, str] = {}
    section, name = "", ""
    for line in doc.splitlines():
        heading = _SECTION.match(line)
        if heading:
            section = heading[1]
        elif line and not line.startswith(" "):
            section = ""
        if section in ("Args", "Attributes") and not heading:
            entry = re.match(r"^    (\w+)(?: \([^)]*\))?: (.*)$", line)
            if entry:
                name = entry[1]
                fields[name] = entry[2]
            elif line.strip() and name:
                fields[name] += " " + line.strip()
        elif not section:
            paragraphs.append(line)
    return Docstring(re.sub(r"\n{3,}", "\n\n", "\n".join(paragraphs)).strip(), fields)
