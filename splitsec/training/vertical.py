"""Vertical layouts: clients hold different columns of the same people, and the server joins what they make of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from splitsec.errors import ConfigError, first_line
from splitsec.files import whole_file
from splitsec.training.schedule import Join

# The cut of a vertical model, between its fronts and its tail.
CUT = "join"


class VerticalModel(nn.Module):
    """A front for each client's columns, and a tail for their outputs joined.

    Args:
        fronts: by the client's name, in the order in which their outputs are joined; each gives (N, features).
        tail: takes the joined outputs and returns one row of logits a person.
        join: `concat` puts the features side by side, `sum` adds them.

    Example:
        >>> model = VerticalModel({"bank": nn.Linear(13, 8), "partner": nn.Linear(10, 8)}, nn.Linear(16, 2))
        >>> model(torch.zeros(5, 13), torch.zeros(5, 10)).shape
        torch.Size([5, 2])
    """

    def __init__(self, fronts: Mapping[str, nn.Module], tail: nn.Module, *, join: Join = "concat") -> None:
        super().__init__()
        if len(fronts) < 2:
            raise ConfigError("a vertical model needs the fronts of at least two clients")
        self.fronts = nn.ModuleDict(dict(fronts))
        self.tail = tail
        self.join: Join = join

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        """Logits; `columns` in the order of the fronts."""
        outputs = [front(one) for front, one in zip(self.fronts.values(), columns, strict=True)]
        result: torch.Tensor = self.tail(joined(outputs, self.join))
        return result


def joined(outputs: Sequence[torch.Tensor], join: Join) -> torch.Tensor:
    """The clients' outputs as the tail takes them; real or shares."""
    return torch.cat(list(outputs), dim=1) if join == "concat" else torch.stack(list(outputs)).sum(0)


@dataclass(frozen=True)
class Columns:
    """One client's columns: `ids` of the rows, `values` float32 (N, columns), at one client `labels` int64 (N,)."""

    ids: tuple[str, ...] = field(repr=False)
    values: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        rows = {len(self.ids), len(self.values)} | ({len(self.labels)} if self.labels is not None else set())
        if len(rows) != 1 or self.values.dim() != 2:
            raise ConfigError("ids, values (N, columns) and labels must have one row a person")
        if not torch.isfinite(self.values).all():
            raise ConfigError("a column holds a value that is not a finite number")
        if self.labels is not None and len(self.labels) and int(self.labels.min()) < 0:
            raise ConfigError(f"labels begin at 0, but there is {int(self.labels.min())}")

    def take(self, rows: Sequence[int]) -> Columns:
        """Some of the rows, in this order."""
        index = torch.tensor(rows, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[index]
        return Columns(tuple(self.ids[row] for row in rows), self.values[index], labels)

    def standardised(self, rows: int) -> Columns:
        """Each column with mean 0 and standard deviation 1 over the first `rows` rows."""
        mean, spread = self.values[:rows].mean(0), self.values[:rows].std(0, unbiased=False)
        return replace(self, values=(self.values - mean) / torch.where(spread > 0, spread, 1.0))

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        encoded = [one.encode() for one in self.ids]
        tensors = {
            "ids": torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()),
            "id_lengths": torch.tensor([len(one) for one in encoded]),
            "values": self.values.contiguous(),
        }
        if self.labels is not None:
            tensors["labels"] = self.labels.contiguous()
        with whole_file(path) as partial:
            save_file(tensors, partial)

    @classmethod
    def load(cls, path: Path) -> Columns:
        """Read what `save` wrote, or a `.csv` file: a header with `id`, at one client `y` for labels, the rest numbers.

        Raises:
            ConfigError: it cannot be read; names file and line.
        """
        return _from_csv(path) if path.suffix == ".csv" else _from_safetensors(path)


def _from_safetensors(path: Path) -> Columns:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        data, ends = tensors["ids"].numpy().tobytes(), tensors["id_lengths"].cumsum(0).tolist()
        ids = tuple(data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True))
        return Columns(ids, tensors["values"].float(), tensors.get("labels"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        raise ConfigError(f"cannot read columns from {path}: {first_line(error)}") from None


def _from_csv(path: Path) -> Columns:
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {path}: {first_line(error)}") from None
    header = rows[0] if rows else []
    if "id" not in header or len(rows) < 2:
        raise ConfigError(f"{path} needs a first line with the names of the columns, one of them 'id', and rows")
    ids, values, labels = [], [], []
    for number, row in enumerate(rows[1:], 2):
        try:
            named = dict(zip(header, row, strict=True))
            ids.append(named.pop("id"))
            if "y" in named:
                labels.append(int(float(named.pop("y"))))
            values.append([float(one) for one in named.values()])
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {first_line(error)}") from None
    try:
        found = torch.tensor(labels) if "y" in header else None
        return Columns(tuple(ids), torch.tensor(values, dtype=torch.float32), found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def split_aligned(count: int, held_out: float, order: int) -> tuple[list[int], list[int]]:
    """Which of the aligned rows are for training and which are held out: the same at every client."""
    shuffled = np.random.default_rng(order).permutation(count).tolist()
    test = int(count * held_out)
    if count - test < 1:
        raise ConfigError(f"{count} common rows leave none to train on")
    return shuffled[test:], shuffled[:test]


def load_columns(name: str, data_dir: Path | None, seed: int) -> list[Columns]:
    """The columns of two clients, the first of which has the labels.

    Args:
        name: `breast`, the 569 patients inside scikit-learn: the mean of ten measurements at the first hospital, their
            errors and worst values at the second, each of which has not seen one in twenty; or `credit`, 30,000
            customers of a bank and its partner.
        data_dir: for `credit`, the directory above `vertical/default_credit_hetero_guest.csv` and `..._host.csv`.
        seed: which patients a hospital has not seen, and the order of its rows.

    Raises:
        ConfigError: an unknown name, or files that are not there.
    """
    if name == "breast":
        from sklearn.datasets import load_breast_cancer

        found = load_breast_cancer()
        values, labels = torch.from_numpy(found.data).float(), torch.from_numpy(found.target).long()
        shuffle = np.random.default_rng(seed)
        parts = []
        for columns, held in ((slice(0, 10), labels), (slice(10, 30), None)):
            rows = torch.from_numpy(shuffle.permutation(len(labels))[: len(labels) - len(labels) // 20])
            ids = tuple(f"patient-{row:04d}" for row in rows.tolist())
            parts.append(Columns(ids, values[rows][:, columns], None if held is None else held[rows]))
        return parts
    if name == "credit":
        if data_dir is None:
            raise ConfigError(
                "the credit-card customers are not part of the package: say where they lie: --data-dir DIR"
            )
        return [
            Columns.load(data_dir / "vertical" / f"default_credit_hetero_{which}.csv") for which in ("guest", "host")
        ]
    raise ConfigError(f"unknown columns '{name}'; choose one of: breast, credit")
