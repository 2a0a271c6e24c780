from pathlib import Path

import numpy as np
import pytest
import torch

from splitsec.data.datasets import load_dataset
from splitsec.data.partition import check_rows, deal, split_rows
from splitsec.errors import ConfigError

LABELS = torch.arange(1000) % 10


@pytest.mark.parametrize("kind", ["iid", "dirichlet:0.3", "dirichlet:100", "shards:2"])
def test_every_row_goes_to_one_client_and_the_seed_decides(kind: str) -> None:
    rows = split_rows(kind, LABELS, 5, seed=1)
    assert sorted(np.concatenate(rows).tolist()) == list(range(1000))
    again, other = split_rows(kind, LABELS, 5, seed=1), split_rows(kind, LABELS, 5, seed=2)
    assert all(map(np.array_equal, rows, again))
    assert not all(map(np.array_equal, rows, other))


def _unevenness(kind: str) -> float:
    """Return how far each client's fraction of each label is from even, 0 for not at all."""
    rows = split_rows(kind, LABELS, 5, seed=3)
    counts = torch.stack([torch.bincount(LABELS[torch.from_numpy(own)], minlength=10) for own in rows]).double()
    return float((counts / counts.sum(0) - 0.2).abs().mean())


def test_kinds_differ_in_how_uneven_they_are() -> None:
    assert _unevenness("iid") < 0.06 < _unevenness("dirichlet:1") < _unevenness("dirichlet:0.1")
    rows = split_rows("shards:2", LABELS, 5, seed=3)
    assert [len(set(LABELS[torch.from_numpy(own)].tolist())) for own in rows] == [2] * 5
    assert {len(own) for own in split_rows("iid", LABELS, 3, seed=0)} == {333, 334}


def test_index_files(tmp_path: Path) -> None:
    (tmp_path / "client-1.txt").write_text("3\n1\n2\n")
    (tmp_path / "client-2.txt").write_text("7 9\n")
    rows = split_rows(f"files:{tmp_path}", LABELS, 2, seed=0)
    assert [own.tolist() for own in rows] == [[3, 1, 2], [7, 9]]
    for text, reason in (
        ("7 3", "overlaps: row 3 is given to client-1 and client-2"),
        ("7 7", "client-2 is given the same row twice"),
        ("1000", "client-2 is given row 1000, but the data has 1000 rows"),
        ("-1", "client-2 is given row -1"),
        ("", "leaves client-2 without data"),
        ("x", "does not hold one row number a line"),
    ):
        (tmp_path / "client-2.txt").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            split_rows(f"files:{tmp_path}", LABELS, 2, seed=0)
    (tmp_path / "client-2.txt").write_text("7 9")
    with pytest.raises(ConfigError, match=r"cannot read the rows of a client from .*client-3\.txt"):
        split_rows(f"files:{tmp_path}", LABELS, 3, seed=0)


@pytest.mark.parametrize(
    ("kind", "clients", "reason"),
    [
        ("round-robin", 2, "unknown partition 'round-robin'; choose one of: iid, dirichlet:ALPHA"),
        ("dirichlet", 2, "needs a number above 0"),
        ("dirichlet:-1", 2, "needs a number above 0"),
        ("shards:1.5", 2, "whole shards"),
        ("shards:600", 2, "whole shards"),
        ("iid", 2000, "cannot be dealt to 2000 clients"),
        ("dirichlet:0.0001", 500, "leaves a client without data"),
    ],
)
def test_partitions_that_cannot_be(kind: str, clients: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        split_rows(kind, LABELS, clients, seed=0)


def test_parts_hold_their_rows_and_an_even_share_of_the_test_data() -> None:
    whole = load_dataset("digits", None, 0)
    rows = split_rows("dirichlet:0.5", whole.train_labels, 3, seed=0)
    parts = deal(whole, rows, 0)
    for part, own in zip(parts, rows, strict=True):
        assert torch.equal(part.train_images, whole.train_images[torch.from_numpy(own)])
        assert torch.equal(part.train_labels, whole.train_labels[torch.from_numpy(own)])
    assert [len(part.test_labels) for part in parts] == [120] * 3
    with pytest.raises(ConfigError, match="overlaps"):
        deal(whole, [rows[0], rows[0]], 0)
    check_rows(rows, len(whole.train_labels))
