"""Tables of one client: what is not as it should be is named by line and column, with what to do."""

from pathlib import Path

import pytest

from splitsec.data.tables import read_csv
from splitsec.errors import ConfigError


def _read(path: Path, text: str, encoding: str = "utf-8") -> object:
    file = path / "bank.csv"
    file.write_bytes(text.encode(encoding))
    return read_csv(file)


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("id,y,age\na,0,1\nb,0.613,2\n", ["line 3, column 'y': the label is 0.613", "whole number of a class"]),
        ("id,y,age\na,3.7,1\n", ["line 2, column 'y': the label is 3.7"]),
        ("id,y,age\na,-1,3\n", ["line 2, column 'y': labels begin at 0, but there is -1", "number the classes"]),
        ("id,y,age\na,yes,3\n", ["line 2, column 'y': the label is 'yes'", "number the classes"]),
        ("id,y,age\na,,3\n", ["line 2, column 'y': the cell is empty"]),
        ("id,y,age\na,nan,3\n", ["line 2, column 'y': 'nan' is not a finite number"]),
        ("id,y,age\na,1e12,3\n", ["line 2, column 'y': the label 1e+12 is no number of a class"]),
        ("id,y,age\na,1e999,3\n", ["line 2, column 'y': the label is '1e999'"]),
        ("id,age\na,x\n", ["line 2, column 'age': 'x' is not a number", "0, 1, 2"]),
        ("id,age,sum\na,1,2\nb,,2\n", ["line 3, column 'age': the cell is empty"]),
        ("id,age\na,nan\n", ["line 2, column 'age': 'nan' is not a finite number"]),
        ("id,age\na,-inf\n", ["line 2, column 'age': '-inf' is not a finite number"]),
        ("id,age\na,NA\n", ["line 2, column 'age': 'NA' is not a finite number"]),
        ("id,age\na,1e39\n", ["line 2, column 'age': 1e39 is beyond what 32-bit floats hold"]),
        ("id,age\na,1_000\n", ["line 2, column 'age': '1_000' is not a number"]),
        ("id,age\na,١٢\n", ["line 2, column 'age': '١٢' is not a number"]),
        ('id,age\na,"3,7"\n', ["line 2, column 'age': '3,7' has a comma; write a point"]),
        ("id,age\na,True\n", ["line 2, column 'age': 'True' is not a number"]),
        ("id,age\na,1\nb\n", ["line 3: 1 cells, but the first line names 2 columns"]),
        ("id,age\na,1\nb,1,2\n", ["line 3: 3 cells"]),
        ("id,age\na,1\n\nb,1\na,2\n", ["the id of line 5 is that of line 2 too"]),
        ('id,age\n"a\nb",1\nc,x\n', ["line 4, column 'age'"]),
        ("id,age\n ,1\n", ["line 2, column 'id': the id is empty"]),
        ("name,age\na,1\n", ["one of them 'id'", "call the one that says who a row is of 'id'"]),
        ("ID,age\na,1\n", ["one of them 'id'", "rename 'ID' to 'id'"]),
        ("id,Y,age\na,1,2\n", ["column 'Y' would be learned from as any other; call it 'y'"]),
        ("", ["one of them 'id'"]),
        ("id,age\n", ["no rows below it"]),
        ("id\na\n", ["no columns beside 'id'"]),
        ("id,age,age\na,1,2\n", ["columns 2 and 3 are both called 'age'"]),
        ("id,y,age,y\na,1,2,0\n", ["columns 2 and 4 are both called 'y'"]),
        (",id,age\n0,a,1\n", ["column 1 has no name in the first line", "index=False"]),
        ("id;age\na;1\n", ["separated by semicolons"]),
        ("id\tage\na\t1\n", ["separated by tabs"]),
    ],
)
def test_bad_tables_name_the_place(text: str, reasons: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, text)
    assert all(reason in str(caught.value) for reason in reasons), caught.value
    assert "bank.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.csv: No such file"):
        read_csv(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        _read(tmp_path, "id,age\na,1\n", "utf-16")


@pytest.mark.parametrize("mark", ["", "﻿"])
def test_blanks_empty_lines_and_a_byte_order_mark_do_not_count(mark: str, tmp_path: Path) -> None:
    table = read_csv(_file(tmp_path, f"{mark}id , y, age\r\n a ,1.0, 2.5\r\n\r\nbé,0,-1e-3\r\n,,\r\n"))
    assert table.ids == ("a", "bé")
    assert table.names == ("age",)
    assert table.values.tolist() == [[2.5], [-1e-3]]
    assert table.labels is not None
    assert table.labels.tolist() == [1, 0]


def test_accents_are_written_in_one_way(tmp_path: Path) -> None:
    """The control: the two ids differ as they are in the file."""
    apart, together = "Jose\N{COMBINING ACUTE ACCENT}", "Jos\N{LATIN SMALL LETTER E WITH ACUTE}"
    assert apart != together
    ids = [read_csv(_file(tmp_path, f"id,age\n{text},1\n")).ids for text in (apart, together)]
    assert ids[0] == ids[1]


def test_labels_alone_are_a_table(tmp_path: Path) -> None:
    table = read_csv(_file(tmp_path, "id,y\na,1\nb,0\n"))
    assert table.values.shape == (2, 0)
    assert table.names == ()


def _file(directory: Path, text: str) -> Path:
    path = directory / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path
