"""Packages of others, as the pages on adding things show them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from splitsec import registry

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


@contextmanager
def installed_from(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *registries: Any) -> Iterator[str]:
    """Install the package that a page shows; yield the page's other Python code.

    Args:
        page: its name in docs/how-to: its first Python block is the package, and a TOML block has the entry point.
        registries: where its entries are taken out again.
    """
    text = (PAGES / page).read_text()
    plugin, *others = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ((name, module),) = re.findall(r'```toml\n\[project.entry-points."splitsec.plugins"\]\n(\w+) = "(\w+)"', text)
    (tmp_path / f"{module}.py").write_text(plugin)
    monkeypatch.syspath_prepend(tmp_path)
    points = EntryPoints([EntryPoint(name, module, registry.GROUP)])
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    registry.load_plugins.cache_clear()
    try:
        yield "\n".join(others)
    finally:
        registry.load_plugins.cache_clear()
        sys.modules.pop(module, None)
        for entries in registries:
            entries._entries.pop(name, None)
