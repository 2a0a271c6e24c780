"""The generated pages, each with the function that writes its Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from generate import api, commands, errors, messages, papers, settings

ROOT = Path(__file__).resolve().parents[2]


def changelog() -> str:
    """Return the changelog of the repository as it stands."""
    return (ROOT / "CHANGELOG.md").read_text()


PAGES: dict[str, Callable[[], str]] = {
    "reference/api.md": api.page,
    "reference/changelog.md": changelog,
    "reference/commands.md": commands.page,
    "reference/errors.md": errors.page,
    "reference/messages.md": messages.page,
    "reference/papers.md": papers.page,
    "reference/settings.md": settings.page,
}
