"""Partitions: which rows of a dataset go to which client of a run on this machine.

A partition is an array of row numbers for each client, disjoint and none empty. `deal` makes the clients' parts from
it, and each client's process reads its own part's file alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from splitsec.data.rows import Part
from splitsec.errors import ConfigError, first_line

Rows = npt.NDArray[np.int64]
KINDS = "iid, dirichlet:ALPHA, shards:LABELS, or files:DIR"
_TRIES = 100


def split_rows(kind: str, labels: torch.Tensor, clients: int, seed: int) -> list[Rows]:
    """Choose the rows of each client.

    Args:
        kind: `iid` deals a shuffle evenly; `dirichlet:0.3` deals each label in proportions from a Dirichlet
            distribution, the more unequal the smaller the number (T.-M. H. Hsu et al., 2019, section 3); `shards:2`
            gives each client two shards of the data sorted by label, and so about two labels (H. B. McMahan et al.,
            AISTATS 2017, section 3); `files:DIR` reads `DIR/client-1.txt` and so on, one row number a line.
        labels: int64 (N,).
        seed: the same seed makes the same partition.

    Raises:
        ConfigError: an unknown kind, files that overlap or go beyond the data, a client without rows.
    """
    name, _, setting = kind.partition(":")
    shuffle = np.random.default_rng(seed)
    count = len(labels)
    if not 1 <= clients <= count:
        raise ConfigError(f"{count} training rows cannot be dealt to {clients} clients")
    if name == "iid" and not setting:
        rows = list(np.array_split(shuffle.permutation(count), clients))
    elif name == "dirichlet":
        rows = _dirichlet(labels.numpy(), clients, _number(kind, setting), shuffle)
    elif name == "shards":
        each = _number(kind, setting)
        if each != int(each) or clients * int(each) > count:
            raise ConfigError(
                f"the partition '{kind}' cannot be made: {count} rows do not make {clients} times {each:g} whole shards"
            )
        rows = _shards(labels.numpy(), clients, int(each), shuffle)
    elif name == "files" and setting:
        rows = [_read(Path(setting) / f"client-{number}.txt") for number in range(1, clients + 1)]
    else:
        raise ConfigError(f"unknown partition '{kind}'; choose one of: {KINDS}")
    check_rows(rows, count)
    return rows


def check_rows(rows: Sequence[Rows], count: int) -> None:
    """Raise `ConfigError` for a partition of `count` rows that overlaps, goes beyond them or leaves a client empty."""
    owner = np.full(count, -1)
    for index, own in enumerate(rows):
        name = f"client-{index + 1}"
        if not len(own):
            raise ConfigError(f"the partition leaves {name} without data; use fewer clients or another partition")
        beyond = own[(own < 0) | (own >= count)]
        if len(beyond):
            raise ConfigError(f"{name} is given row {beyond[0]}, but the data has {count} rows")
        if len(np.unique(own)) != len(own):
            raise ConfigError(f"{name} is given the same row twice")
        twice = own[owner[own] >= 0]
        if len(twice):
            other = f"client-{owner[twice[0]] + 1}"
            raise ConfigError(f"the partition overlaps: row {twice[0]} is given to {other} and {name}")
        owner[own] = index


def deal(whole: Part, rows: Sequence[Rows], seed: int) -> list[Part]:
    """Return each client's part: its rows of the training data, and equally many test rows by a seeded shuffle.

    Raises:
        ConfigError: `rows` is no partition, or there are fewer test rows than clients.
    """
    check_rows(rows, len(whole.train_labels))
    if len(whole.test_labels) < len(rows):
        raise ConfigError(f"{len(whole.test_labels)} test rows cannot be dealt to {len(rows)} clients")
    held_out = np.array_split(np.random.default_rng(seed).permutation(len(whole.test_labels)), len(rows))
    return [
        Part(whole.train_images[train], whole.train_labels[train], whole.test_images[test], whole.test_labels[test])
        for train, test in zip(map(torch.from_numpy, rows), map(torch.from_numpy, held_out), strict=True)
    ]


def _number(kind: str, setting: str) -> float:
    try:
        number = float(setting)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"the partition '{kind}' needs a number above 0 after the colon")
    return number


def _dirichlet(labels: Rows, clients: int, alpha: float, shuffle: np.random.Generator) -> list[Rows]:
    for _ in range(_TRIES):
        pieces: list[list[Rows]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            rows = shuffle.permutation(np.flatnonzero(labels == label))
            ends = (np.cumsum(shuffle.dirichlet([alpha] * clients))[:-1] * len(rows)).round().astype(np.int64)
            for index, piece in enumerate(np.split(rows, ends)):
                pieces[index].append(piece)
        partition = [shuffle.permutation(np.concatenate(own)) for own in pieces]
        if all(map(len, partition)):
            return partition
    raise ConfigError(
        f"a Dirichlet partition with alpha {alpha:g} leaves a client without data in each of {_TRIES} draws; use fewer "
        "clients or a larger alpha"
    )


def _shards(labels: Rows, clients: int, each: int, shuffle: np.random.Generator) -> list[Rows]:
    # Shuffled before the stable sort, so that a shard is a random part of its label.
    rows = shuffle.permutation(len(labels))
    shards = np.array_split(rows[np.argsort(labels[rows], kind="stable")], clients * each)
    dealt = shuffle.permutation(clients * each).reshape(clients, each)
    return [shuffle.permutation(np.concatenate([shards[number] for number in own])) for own in dealt]


def _read(path: Path) -> Rows:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the rows of a client from {path}: {error.strerror}") from None
    try:
        return np.array([int(line) for line in text.split()], dtype=np.int64)
    except ValueError as error:
        raise ConfigError(f"{path} does not hold one row number a line: {first_line(error)}") from None
