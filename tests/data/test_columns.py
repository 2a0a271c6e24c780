"""One client's columns, in memory and in files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from splitsec.data.columns import Columns, ids_of, split_aligned, text_tensors
from splitsec.errors import ConfigError


def _columns(labels: bool = True) -> Columns:
    values = torch.arange(6.0).view(3, 2)
    return Columns(("a", "bé", "c"), values, torch.tensor([0, 1, 1]) if labels else None, ("age", "sum"))


@pytest.mark.parametrize("labels", [True, False])
def test_columns_survive_their_file(labels: bool, tmp_path: Path) -> None:
    columns = _columns(labels)
    columns.save(tmp_path / "columns.safetensors")
    back = Columns.load(tmp_path / "columns.safetensors")
    assert back.ids == columns.ids
    assert back.names == ("age", "sum")
    assert torch.equal(back.values, columns.values)
    assert (back.labels is not None) == labels
    assert ids_of(load_file(tmp_path / "columns.safetensors")) == columns.ids
    (tmp_path / "columns.csv").write_text("id,age,y,sum\na,0,0,1\nbé,2,1,3\nc,4,1,5\n")
    table = Columns.load(tmp_path / "columns.csv")
    assert (table.ids, table.names) == (columns.ids, columns.names)
    assert torch.equal(table.values, columns.values)
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"values": torch.zeros(2, 2)}, "one row a person; there are 3 ids, values (2, 2), labels (3,)"),
        ({"values": torch.zeros(3)}, "values (3,)"),
        ({"labels": torch.zeros(3, 1, dtype=torch.int64)}, "labels (3, 1)"),
        (
            {"values": torch.tensor([[1.0, 2], [3, torch.nan], [1, 1]])},
            "row 2, column 'sum': nan is not a finite number",
        ),
        ({"values": torch.full((3, 2), 1e300, dtype=torch.float64)}, "row 1, column 'age': 1e+300 is beyond"),
        ({"values": torch.zeros(3, 2, dtype=torch.complex64)}, "values are complex64"),
        ({"labels": torch.tensor([0.0, 0.613, 1])}, "labels (float32), row 2: the label is 0.613"),
        ({"labels": torch.tensor([0.0, torch.nan, 1])}, "labels (float32), row 2: the label is nan"),
        ({"labels": torch.tensor([0, 1, -1], dtype=torch.int8)}, "labels (int8), row 3: labels begin at 0"),
        ({"labels": torch.tensor([0, 1, 1 << 40])}, "labels (int64), row 3: the label 1.099512e+12 is no number"),
        ({"ids": ("a", "b", "a")}, "the id of row 3 is that of row 1 too"),
        ({"names": ("age",)}, "2 columns need as many different names"),
        ({"names": ("age", "age")}, "2 columns need as many different names"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(_columns(), **changed)  # type: ignore[arg-type]
    assert reason in str(caught.value)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int16, torch.float32, torch.float64, torch.bool])
def test_labels_of_other_types_are_converted_without_loss(kind: torch.dtype, tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 1]).to(kind)
    assert labels.dtype != torch.int64
    save_file(
        {**text_tensors(("a", "b", "c")), "values": torch.zeros(3, 1), "labels": labels}, tmp_path / "c.safetensors"
    )
    found = Columns.load(tmp_path / "c.safetensors").labels
    assert found is not None
    assert (found.dtype, found.tolist()) == (torch.int64, [0, 1, 1])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"labels": torch.tensor([0.0, 0.613, 1])}, "c.safetensors: labels (float32), row 2: the label is 0.613"),
        ({"ids": None}, "it lacks ids"),
        ({"values": None}, "it lacks values"),
        ({"id_lengths": torch.tensor([1, 1, 5])}, "c.safetensors: the ids cannot be read"),
        ({"id_lengths": torch.tensor([2, 2, -1])}, "c.safetensors: the ids cannot be read"),
        ({"ids": torch.tensor([255, 255, 255], dtype=torch.uint8)}, "c.safetensors: the ids cannot be read"),
        ({"y": torch.zeros(3)}, "holds y beside ids, values and labels"),
        ({"train_images": torch.zeros(3)}, "holds rows with labels; a vertical run takes columns"),
    ],
)
def test_bad_files_name_what_is_wrong(changed: dict[str, torch.Tensor | None], reason: str, tmp_path: Path) -> None:
    tensors = {**text_tensors(("a", "b", "c")), "values": torch.zeros(3, 1), "labels": torch.zeros(3), **changed}
    save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / "c.safetensors")
    with pytest.raises(ConfigError) as caught:
        Columns.load(tmp_path / "c.safetensors")
    assert reason in str(caught.value)


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "columns.safetensors").write_text("id,age\n")
    with pytest.raises(ConfigError, match="cannot read columns from"):
        Columns.load(tmp_path / "columns.safetensors")
    with pytest.raises(ConfigError, match="does not exist"):
        Columns.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(ConfigError, match="come as a .csv or a .safetensors file"):
        Columns.load(tmp_path / "columns.xlsx")


def test_numbers_whose_differences_32_bits_lose_are_refused(tmp_path: Path) -> None:
    """Seconds since 1970 of one hour. The control: of ten years they differ enough."""
    path = tmp_path / "times.csv"
    for step, refused in ((60, True), (30_000_000, False)):
        path.write_text("id,time\n" + "".join(f"{row},{1_700_000_000 + row * step}\n" for row in range(10)))
        if refused:
            with pytest.raises(ConfigError, match=r"column 'time' has numbers such as 17000.*subtract 1.7e\+09"):
                Columns.load(path)
        else:
            assert len(Columns.load(path).ids) == 10


def test_rows_are_held_out_alike_at_every_client() -> None:
    train, test = split_aligned(10, 0.2, 3)
    assert sorted(train + test) == list(range(10))
    assert len(test) == 2
    assert split_aligned(10, 0.2, 3) == (train, test)
    assert split_aligned(10, 0.2, 4) != (train, test)
    with pytest.raises(ConfigError, match="leave none to train on"):
        split_aligned(0, 0.5, 0)
