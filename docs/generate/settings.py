"""The page of settings, from their descriptions in `splitsec/settings`."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from typing import Any

from generate.markdown import code, read_docstring, table
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.setting import Described, describe, shown
from splitsec.settings.toml import RENAMED

PARTIES: dict[str, type[Any]] = {
    "dealer.toml": DealerConfig,
    "server.toml": ServerConfig,
    "client.toml": ClientConfig,
}
INTRODUCTION = """# Settings

What may stand in the TOML file of each party: [run the parties by hand](../how-to/run-parties-by-hand.md) shows whole
files. A setting that is unknown, of the wrong type or out of bounds is refused by name. So is one that would do nothing
in the layout at hand.

The settings of a run identify it: a run goes on from its checkpoints only where they are equal. One that **may grow**
may be larger when the run goes on. In Python the settings of a run are the fields of `RunSettings`; options of
`splitsec demo` are made from the same descriptions: [commands](commands.md).
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    tables: dict[str, type[Any]] = {}
    for file, kind in PARTIES.items():
        parts.append(f"## {file}\n")
        for owner, settings in by_owner(kind):
            parts.append(f"### {_title(owner)} {{ #{file.removesuffix('.toml')}-{owner.__name__.lower()} }}\n")
            parts.append(read_docstring(owner).text.split("\n\n")[0] + "\n")
            parts.append(table(HEADER, [row(setting) for setting in settings]))
            tables |= {setting.name: setting.table for setting in settings if setting.table is not None}
    for name, kind in tables.items():
        parts.append(f"## The table {code(name)}\n")
        parts.append(f"As in {code(f'{name} = {{...}}')}. {read_docstring(kind).text.split(chr(10) * 2)[0]}\n")
        parts.append(table(HEADER, [row(setting) for setting in describe(kind)]))
    parts.append("## Names before version 0.2\n")
    parts.append("A file or a command with an old name is refused, and the message has the new one.\n")
    parts.append(table(["before", "now"], [(code(old), code(new)) for old, new in RENAMED.items()]))
    return "\n".join(parts)


HEADER = ["setting", "allowed", "default", "what it does"]


def by_owner(kind: type[Any]) -> list[tuple[type[Any], list[Described]]]:
    """Return the settings of a dataclass by the class that declares them, the most special class first."""
    described = {setting.name: setting for setting in describe(kind)}
    owners = []
    for owner in kind.__mro__:
        names = [name for name in inspect.get_annotations(owner) if name in described] if is_dataclass(owner) else []
        if names:
            owners.append((owner, [described.pop(name) for name in names]))
    return owners


def row(setting: Described) -> tuple[str, str, str, str]:
    """Return a setting's line of a table: its name, what may be written, its default, and what it does."""
    if setting.required:
        default = "required"
    elif setting.default is None or setting.table is not None:
        default = ""
    else:
        default = code(shown(setting.default))
    allowed = "a table, see below" if setting.table is not None else setting.allowed
    if setting.unit and setting.unit not in allowed:
        allowed += f" ({setting.unit})"
    return code(setting.name), allowed, default, setting.help + (" **May grow.**" if setting.grows else "")


def _title(owner: type[Any]) -> str:
    words = {"Process": "The process", "Waiting": "Other parties", "Training": "Training", "RunSettings": "The run"}
    return words.get(owner.__name__, "This party")
