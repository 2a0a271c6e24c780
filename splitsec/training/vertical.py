"""Vertical layouts: clients hold different columns of the same people, and the server joins what they make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.training.columns import Columns
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


__all__ = ["CUT", "Columns", "VerticalModel", "joined", "load_columns", "split_aligned"]
