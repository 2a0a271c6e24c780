"""Reading a client's table from a `.csv` file; what is not as it should be is named by line and column."""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from splitsec.errors import ConfigError, first_line

ID, LABEL = "id", "y"
# `float` takes 1_000 and digits of other scripts too, which are more often a mistake than a number.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)|#?n/?a|null|none", re.IGNORECASE)
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
# No model has more classes, and beyond 2^53 a float no longer tells whole numbers apart.
MOST_CLASSES = 1 << 31


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Attributes:
        ids: of the rows.
        names: of the columns.
        values: float64 (N, columns).
        labels: int64 (N,), or None where the file has none.
    """

    ids: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...]
    values: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(repr=False)


def read_csv(path: Path) -> Table:
    """Read a table whose first line names the columns: `id`, at one client `y` for the labels, the rest numbers.

    Blanks around names, ids and numbers do not count, nor do empty lines or a byte order mark; accents in ids may be
    written either way that Unicode allows (they are normalised to NFC).

    Raises:
        ConfigError: it cannot be read; names the file, the line and the column.
    """
    lines = _read_lines(path)
    header = [name.strip() for name in lines[0][1]] if lines else []
    check_header(header, path)
    if len(lines) < 2:
        raise ConfigError(f"{path} has a first line with the names of the columns and no rows below it")
    ids: dict[str, int] = {}
    labels: list[int] = []
    values: list[list[float]] = []
    for line, cells in lines[1:]:
        row = _Row.read(header, cells, f"{path}, line {line}")
        if row.id in ids:
            raise ConfigError(
                f"{path}: the id of line {line} is that of line {ids[row.id]} too; every person needs one row"
            )
        ids[row.id] = line
        labels += row.labels
        values.append(row.numbers)
    names = tuple(name for name in header if name not in (ID, LABEL))
    table = torch.tensor(values, dtype=torch.float64).reshape(len(values), len(names))
    return Table(tuple(ids), names, table, torch.tensor(labels) if LABEL in header else None)


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that are not empty, each with its number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8: save it as CSV with that encoding") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except csv.Error as error:
        raise ConfigError(f"cannot read {path}: {first_line(error)}") from None


@dataclass(frozen=True)
class _Row:
    """One row of a table; `labels` has one entry or none."""

    id: str
    labels: list[int]
    numbers: list[float]

    @classmethod
    def read(cls, header: Sequence[str], cells: Sequence[str], place: str) -> _Row:
        if len(cells) != len(header):
            raise ConfigError(
                f"{place}: {len(cells)} cells, but the first line names {len(header)} columns; a comma inside a cell "
                "needs quotes around it"
            )
        columns = {name: (cell, f"{place}, column '{name}'") for name, cell in zip(header, cells, strict=True)}
        return cls(
            _id(*columns.pop(ID)),
            [_label(*columns.pop(LABEL))] if LABEL in columns else [],
            [number_in(*column) for column in columns.values()],
        )


def check_header(header: Sequence[str], path: Path) -> None:
    """Raise `ConfigError` unless the names of the columns can be used, saying what to write instead."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and separator in header[0]:
            raise ConfigError(f"{path}: the columns are separated by {name}; save it with commas between them")
    if ID not in header:
        near = next((name for name in header if name.lower() in ("id", "ids", "index", "key", "uid")), None)
        advice = f"rename '{near}' to '{ID}'" if near else f"call the one that says who a row is of '{ID}'"
        raise ConfigError(
            f"{path} needs a first line with the names of the columns, one of them '{ID}', by which rows are aligned: "
            f"{advice}"
        )
    for place, name in enumerate(header, 1):
        if not name:
            raise ConfigError(
                f"{path}: column {place} has no name in the first line; name it or leave it out (pandas writes the "
                "index so: index=False)"
            )
        if name in header[: place - 1]:
            raise ConfigError(
                f"{path}: columns {header.index(name) + 1} and {place} are both called '{name}'; names must differ"
            )
        if name != LABEL and name.lower() == LABEL:
            raise ConfigError(
                f"{path}: column '{name}' would be learned from as any other; call it '{LABEL}' if it holds the "
                "labels, or otherwise if it does not"
            )
    if len(header) == 1:
        raise ConfigError(f"{path} has no columns beside '{ID}': neither numbers to learn from nor labels '{LABEL}'")


def number_in(cell: str, where: str) -> float:
    """Return the number in a cell; raises `ConfigError`, which begins with `where`, unless 32-bit floats hold it."""
    text = cell.strip()
    if not text:
        raise ConfigError(f"{where}: the cell is empty; fill it in, or leave the row out")
    if _NUMBER.fullmatch(text):
        number = float(text)
        if abs(number) <= _LARGEST_FLOAT:
            return number
        raise ConfigError(f"{where}: {text[:40]} is beyond what 32-bit floats hold; give it in a larger unit")
    if _NOT_FINITE.fullmatch(text):
        raise ConfigError(f"{where}: {text!r} is not a finite number; fill it in, or leave the row out")
    if re.fullmatch(r"[+-]?\d+(,\d+)+(\.\d+)?", text):
        raise ConfigError(
            f"{where}: {text[:40]!r} has a comma; write a point before decimals and nothing between digits"
        )
    raise ConfigError(
        f"{where}: {text[:40]!r} is not a number; number what is text (0, 1, 2, ...), or make a column of 0 and 1 of "
        "each value"
    )


def plain_id(text: str) -> str:
    """Return an id without blanks around it, and with its accents as Unicode's form NFC writes them."""
    return unicodedata.normalize("NFC", text.strip())


def _id(cell: str, where: str) -> str:
    text = plain_id(cell)
    if not text:
        raise ConfigError(f"{where}: the id is empty; a row without an id cannot be aligned, leave it out")
    return text


def _label(cell: str, where: str) -> int:
    try:
        number = number_in(cell, where)
    except ConfigError:
        if cell.strip() and not _NOT_FINITE.fullmatch(cell.strip()):
            raise ConfigError(f"{where}: the label is {cell.strip()[:40]!r}; number the classes 0, 1, 2, ...") from None
        raise
    wrong = wrong_label(number)
    if wrong:
        raise ConfigError(f"{where}: {wrong}")
    return int(number)


def wrong_label(number: float) -> str:
    """Say why a number is no label, and what to do; nothing if it is a label."""
    if not math.isfinite(number) or number != int(number):
        return (
            f"the label is {number:.7g}, but a label is the whole number of a class, from 0 on; to learn whether it "
            "is large, write 1 where it is and 0 where it is not"
        )
    if number < 0:
        return f"labels begin at 0, but there is {number:.7g}; number the classes 0, 1, 2, ..."
    if number >= MOST_CLASSES:
        return f"the label {number:.7g} is no number of a class; number the classes 0, 1, 2, ..."
    return ""
