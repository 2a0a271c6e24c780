from pathlib import Path

import pytest

from splitsec.data.datasets import load_columns
from splitsec.errors import ConfigError


def test_the_bank_has_the_labels(tmp_path: Path) -> None:
    tables = {"guest": "id,y,x0\n7,1,0.5\n8,0,-1\n", "host": "id,x0,x1\n8,1,2\n7,3,4\n"}
    (tmp_path / "vertical").mkdir()
    for role, table in tables.items():
        (tmp_path / "vertical" / f"default_credit_hetero_{role}.csv").write_text(table)
    bank, partner = load_columns("credit", tmp_path, 0)
    assert bank.labels is not None
    assert (bank.ids, bank.labels.tolist(), bank.values.tolist()) == (("7", "8"), [1, 0], [[0.5], [-1.0]])
    assert (partner.ids, partner.labels, partner.names) == (("8", "7"), None, ("x0", "x1"))


def test_a_directory_without_the_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read {tmp_path}.*default_credit_hetero_guest.csv"):
        load_columns("credit", tmp_path, 0)
