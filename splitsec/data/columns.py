"""One client's columns of a table, in memory and in files; other clients have other columns of the same people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from splitsec.data.standardisation import Scaling, spread_of
from splitsec.data.tables import read_csv, wrong_label
from splitsec.errors import ConfigError, first_line
from splitsec.tensors import dtype_name, read_tensors, write_tensors

# The largest fraction of a column's spread by which a 32-bit float may move a number.
_MOST_ROUNDING = 1e-3
_AS_USUAL = Scaling()


@dataclass(frozen=True)
class Columns:
    """One client's columns.

    Values and labels of other types are converted where nothing is lost.

    Attributes:
        ids: say which person a row is of, different in each row.
        values: float32 (N, columns).
        labels: int64 (N,), at one client; None at the others.
        names: of the columns; "1", "2" and so on unless others are given.
        scaling: how the columns are made ready for the front, see `standardised`.

    Raises:
        ConfigError: something does not fit; names the row (from 1 on) and the column.
    """

    ids: tuple[str, ...] = field(repr=False)
    values: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    scaling: Scaling = _AS_USUAL

    def __post_init__(self) -> None:
        rows = {len(self.ids), len(self.values)} | ({len(self.labels)} if self.labels is not None else set())
        if len(rows) != 1 or self.values.dim() != 2 or (self.labels is not None and self.labels.dim() != 1):
            labels = "" if self.labels is None else f", labels {tuple(self.labels.shape)}"
            raise ConfigError(
                "ids, values (N, columns) and labels (N,) must have one row a person; there are "
                f"{len(self.ids)} ids, values {tuple(self.values.shape)}{labels}"
            )
        if not self.names:
            object.__setattr__(self, "names", tuple(str(number) for number in range(1, self.values.shape[1] + 1)))
        if len(self.names) != self.values.shape[1] or len(set(self.names)) != len(self.names):
            raise ConfigError(f"{self.values.shape[1]} columns need as many different names; there are {self.names}")
        if len(set(self.ids)) != len(self.ids):
            first = {text: row for row, text in reversed(list(enumerate(self.ids, 1)))}
            row = next(row for row, text in enumerate(self.ids, 1) if first[text] != row)
            raise ConfigError(f"the id of row {row} is that of row {first[self.ids[row - 1]]} too; each needs its own")
        if not self.scaling.whole or self.values.dtype != torch.int64:
            object.__setattr__(self, "values", _real(self.values, self.names))
        if self.labels is not None:
            object.__setattr__(self, "labels", whole_labels(self.labels))

    def take(self, rows: Sequence[int]) -> Columns:
        """Return some of the rows, in this order."""
        index = torch.tensor(rows, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, ids=tuple(self.ids[row] for row in rows), values=self.values[index], labels=labels)

    def standardised(self, rows: int) -> Columns:
        """Return the columns as the front takes them, with the standardisation that was used in `scaling.given`.

        Unless `scaling` says otherwise, each column has mean 0 and standard deviation 1 over the first `rows` rows.

        Raises:
            ConfigError: the columns are not those of `scaling.given`, or codes are no whole numbers.
        """
        standardisation = self.scaling.measured(self.values[:rows], self.names)
        places = standardisation.places(self.names)
        values = self.values[:, places]
        codes = standardisation.names if standardisation.whole else self.scaling.codes
        for place, name in enumerate(standardisation.names):
            wrong = (values[:, place] != values[:, place].round()) | (values[:, place] < 0)
            if name in codes and bool(wrong.any()):
                value = float(values[wrong, place][0])
                raise ConfigError(
                    f"column '{name}' holds codes that the front looks up, but there is {value:.10g}: codes are whole "
                    "numbers from 0 on"
                )
        scaling = replace(self.scaling, given=standardisation, whole=standardisation.whole)
        return replace(self, values=standardisation.apply(values), names=standardisation.names, scaling=scaling)

    @property
    def constant(self) -> tuple[str, ...]:
        """Return the names of the columns that are the same in all rows, and so say nothing."""
        same = (self.values == self.values[:1]).all(0) if len(self.values) > 1 else torch.zeros(len(self.names))
        return tuple(name for name, alike in zip(self.names, same.tolist(), strict=True) if alike)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        labels = {} if self.labels is None else {"labels": self.labels}
        tensors = {**text_tensors(self.ids), "values": self.values, **labels}
        write_tensors(path, tensors, {"names": json.dumps(self.names)})

    @classmethod
    def load(cls, path: Path) -> Columns:
        """Read what `save` wrote, or a `.csv` file: a header with `id`, at one client `y` for labels, the rest numbers.

        Raises:
            ConfigError: it cannot be read; names file, line and column.
        """
        if path.suffix.lower() == ".safetensors":
            return _from_safetensors(path)
        if path.suffix.lower() != ".csv":
            raise ConfigError(f"columns come as a .csv or a .safetensors file, not {path}")
        table = read_csv(path)
        try:
            return cls(table.ids, table.values, table.labels, table.names)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def text_tensors(ids: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return ids as tensors for a file: `ids`, all in UTF-8, and `id_lengths`, the bytes of each; see `ids_of`."""
    encoded = [text.encode() for text in ids]
    joined = torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy())
    return {"ids": joined, "id_lengths": torch.tensor([len(text) for text in encoded], dtype=torch.int64)}


def ids_of(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Return the ids in a file of columns or of predictions, in the order of its rows.

    Args:
        tensors: of the file, with those that `text_tensors` made.

    Raises:
        ConfigError: there are none, or they are not what `text_tensors` makes.
    """
    try:
        data, lengths = tensors["ids"].numpy().tobytes(), tensors["id_lengths"].tolist()
        if min(lengths, default=0) < 0 or sum(lengths) != len(data):
            raise ValueError("id_lengths do not add up to the bytes of the ids")
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        return tuple(data[start:end].decode() for start, end in zip([0, *ends][: len(ends)], ends, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the ids cannot be read: {first_line(error)}") from None


def whole_labels(labels: torch.Tensor) -> torch.Tensor:
    """Return labels as int64 (N,), where that loses nothing.

    Raises:
        ConfigError: names the first row (from 1 on) whose value is no label, and says how to convert.
    """
    if labels.is_complex():
        raise ConfigError(f"labels are {dtype_name(labels)}; give them as int64")
    wide = labels.double()
    bad = ~torch.isfinite(wide) | (wide != wide.round()) | (wide < 0) | (wide >= 1 << 31)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ConfigError(f"labels ({dtype_name(labels)}), row {row + 1}: {wrong_label(float(wide[row]))}")
    return labels.to(torch.int64)


def _from_safetensors(path: Path) -> Columns:
    tensors = read_tensors(path, "columns", "Columns(ids, values, labels).save(path) writes one")
    if "train_images" in tensors:
        raise ConfigError(
            f"{path} holds rows with labels; a vertical run takes columns, as Columns(...).save writes them"
        )
    missing = [name for name in ("ids", "id_lengths", "values") if name not in tensors]
    if missing:
        raise ConfigError(
            f"cannot read columns from {path}: it lacks {', '.join(missing)}; Columns(ids, values, labels).save(path) "
            "writes such a file"
        )
    unknown = sorted(set(tensors) - {"ids", "id_lengths", "values", "labels"})
    if unknown:
        raise ConfigError(f"{path} holds {', '.join(unknown)} beside ids, values and labels; leave that out")
    try:
        with safe_open(path, "pt") as file:
            names = tuple(str(name) for name in json.loads((file.metadata() or {}).get("names", "[]")))
        return Columns(ids_of(tensors), tensors["values"], tensors.get("labels"), names)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot read columns from {path}: {first_line(error)}") from None


def _real(values: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Return values as float32; raises `ConfigError` for values that are not finite, or lose what tells rows apart."""
    if values.is_complex():
        raise ConfigError(f"values are {dtype_name(values)}; columns hold real numbers")
    narrow = values.float()
    if not bool(torch.isfinite(narrow).all()):
        row, column = (~torch.isfinite(narrow)).nonzero()[0].tolist()
        value = float(values[row, column])
        why = "is beyond what 32-bit floats hold" if np.isfinite(value) else "is not a finite number"
        raise ConfigError(f"row {row + 1}, column '{names[column]}': {value:.10g} {why}")
    if values.dtype != torch.float32 and len(values):
        wide = values.double()
        rounding, spread = (wide - narrow.double()).abs(), spread_of(wide)
        for column, (most, differs) in enumerate(zip(rounding.amax(0).tolist(), spread.tolist(), strict=True)):
            if differs > 0 and most > _MOST_ROUNDING * differs:
                value = float(wide[int(rounding[:, column].argmax()), column])
                raise ConfigError(
                    f"column '{names[column]}' has numbers such as {value:.15g}, of which 32-bit floats keep 7 digits: "
                    f"what tells the rows apart (they differ by about {differs:.3g}) would be lost; subtract "
                    f"{float(wide[:, column].mean()):.3g} from all"
                )
    return narrow


def split_aligned(count: int, held_out: float, order: int) -> tuple[list[int], list[int]]:
    """Choose which of the aligned rows are for training and which are held out, alike at every client.

    Args:
        count: of the rows.
        held_out: the fraction that is held out.
        order: the seed of the shuffle.

    Raises:
        ConfigError: no row is left to train on.
    """
    shuffled = np.random.default_rng(order).permutation(count).tolist()
    test = int(count * held_out)
    if count - test < 1:
        raise ConfigError(f"{count} common rows leave none to train on")
    return shuffled[test:], shuffled[:test]
