"""Compare two results of one benchmark: `python -m benchmarks.compare OLD NEW`.

Records are paired by what was measured (engine, model, batch, dataset, ...); each time or rate is given as
new over old. Only results of the same machine say something: take turns, old and new, and compare each pair.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import console
from splitsec.errors import ConfigError

# What a record measures; everything else but the exact counts says what was measured.
MEASURED = (
    "plaintext_ms",
    "online_ms",
    "offline_ms",
    "total_ms",
    "steady_ms",
    "per_second",
    "ms_per_prediction",
    "split",
    "plain",
    "share",
)
KEYS = (
    "engine",
    "model",
    "cut",
    "batch",
    "threads",
    "comparison",
    "link",
    "sessions",
    "dataset",
    "clients",
    "in_flight",
)


def compare(old: Path, new: Path) -> list[tuple[str, dict[str, float]]]:
    """Return, for each thing that both results measure, the quotients new over old.

    Raises:
        ConfigError: a file is no result, the machines differ, or nothing is in both.
    """
    before, after = _read(old), _read(new)
    if before["machine"] != after["machine"]:
        raise ConfigError(f"{old} and {new} were measured on different machines: their times cannot be compared")
    earlier = {_key(record): record for record in before["records"]}
    pairs = []
    for record in after["records"]:
        other = earlier.get(_key(record))
        if other is not None:
            quotients = {name: record[name] / other[name] for name in MEASURED if record.get(name) and other.get(name)}
            pairs.append((", ".join(part for part in _key(record) if part), quotients))
    if not pairs:
        raise ConfigError(f"{old} and {new} measure nothing in common")
    return pairs


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        _ = content["machine"], content["records"]
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(f"{path} is no result of a benchmark: write one with --json {path}") from None
    return content


def _key(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple("" if record.get(name) in (None, "") else str(record[name]) for name in KEYS)


def main(arguments: list[str]) -> int:
    """Print the table."""
    if len(arguments) != 2:
        print("usage: python -m benchmarks.compare OLD.json NEW.json", file=sys.stderr)
        return 2
    try:
        pairs = compare(*map(Path, arguments))
    except ConfigError as error:
        print(f"splitsec: {error}", file=sys.stderr)
        return error.exit_code
    table = Table(title="new over old")
    for heading in ("what", "measure", "new / old"):
        table.add_column(heading, justify="right" if heading == "new / old" else "left")
    for what, quotients in pairs:
        for name, quotient in quotients.items():
            table.add_row(what, name, f"{quotient:.2f}")
    console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
