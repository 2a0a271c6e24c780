"""The page of the Python interface: mkdocstrings writes it from signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from generate.markdown import code

ROOT = Path(__file__).resolve().parents[2]
INTRODUCTION = """# Python interface

The public names of `splitsec`, and every other name that a page of this documentation or a program in `examples/`
imports. A name that is not here may change without notice.
"""


def names() -> dict[str, list[str]]:
    """Return the documented names by the module that they are imported from; those of `splitsec` itself first."""
    by_module: dict[str, set[str]] = defaultdict(set)
    public = [name for name in importlib.import_module("splitsec").__all__ if not name.startswith("__")]
    for source in sources():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "splitsec":
                by_module[node.module or ""] |= {alias.name for alias in node.names}
    by_module.pop("splitsec", None)
    return {"splitsec": public, **{module: sorted(by_module[module]) for module in sorted(by_module)}}


def sources() -> Iterator[str]:
    """Yield the Python code of every page and of every example."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        yield from (textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    for example in sorted((ROOT / "examples").glob("*.py")):
        yield example.read_text()


def page() -> str:
    """Return the page as Markdown with mkdocstrings' directives."""
    parts = [INTRODUCTION]
    for module, members in names().items():
        parts.append(f"## From {code(module)}\n\n" + "\n".join(f"::: {module}.{name}\n" for name in members))
    return "\n".join(parts)
