from pathlib import Path

import pytest
import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.training.vertical import Columns, VerticalModel, split_aligned


def _columns(labels: bool = True) -> Columns:
    return Columns(("a", "bé", "c"), torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1]) if labels else None)


@pytest.mark.parametrize("labels", [True, False])
def test_columns_survive_their_file(labels: bool, tmp_path: Path) -> None:
    columns = _columns(labels)
    columns.save(tmp_path / "columns.safetensors")
    back = Columns.load(tmp_path / "columns.safetensors")
    assert back.ids == columns.ids
    assert torch.equal(back.values, columns.values)
    assert (back.labels is not None) == labels
    (tmp_path / "columns.csv").write_text("id,age,y,sum\na,0,0,1\nbé,2,1,3\nc,4,1,5\n")
    csv = Columns.load(tmp_path / "columns.csv")
    assert csv.ids == columns.ids
    assert torch.equal(csv.values, columns.values)
    assert csv.labels is not None
    assert csv.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,age\na,x\n", "line 2: could not convert string to float: 'x'"),
        ("id,age\na,1\nb\n", "line 3"),
        ("name,age\na,1\n", "one of them 'id'"),
        ("id,age\n", "one of them 'id'"),
        ("id,age\na,nan\n", "not a finite number"),
        ("id,y,age\na,-1,3\n", "labels begin at 0, but there is -1"),
    ],
)
def test_bad_files_name_the_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "columns.csv").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        Columns.load(tmp_path / "columns.csv")
    (tmp_path / "columns.safetensors").write_text(text)
    with pytest.raises(ConfigError, match="cannot read columns"):
        Columns.load(tmp_path / "columns.safetensors")
    with pytest.raises(ConfigError, match="cannot read"):
        Columns.load(tmp_path / "nowhere.csv")


def test_columns_must_fit() -> None:
    with pytest.raises(ConfigError, match="one row a person"):
        Columns(("a",), torch.zeros(2, 1))


def test_standardised_by_the_rows_for_training_alone() -> None:
    values = torch.tensor([[1.0, 7.0], [3.0, 7.0], [100.0, 7.0]])
    found = Columns(("a", "b", "c"), values).standardised(2)
    assert found.values.tolist() == [[-1.0, 0.0], [1.0, 0.0], [98.0, 0.0]]
    assert found.take([2, 0]).ids == ("c", "a")


def test_the_split_is_everybodys() -> None:
    train, test = split_aligned(10, 0.2, 3)
    assert sorted(train + test) == list(range(10))
    assert len(test) == 2
    assert split_aligned(10, 0.2, 3) == (train, test)
    assert split_aligned(10, 0.2, 4) != (train, test)
    with pytest.raises(ConfigError, match="leave none to train on"):
        split_aligned(0, 0.5, 0)


@pytest.mark.parametrize("join", ["concat", "sum"])
def test_the_model_joins(join: str) -> None:
    model = VerticalModel(
        {"a": nn.Linear(2, 3), "b": nn.Linear(1, 3)}, nn.Linear(6 if join == "concat" else 3, 2), join=join
    )
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    left, right = model.fronts["a"](x), model.fronts["b"](y)
    together = torch.cat([left, right], 1) if join == "concat" else left + right
    torch.testing.assert_close(model(x, y), model.tail(together))
    with pytest.raises(ConfigError, match="at least two clients"):
        VerticalModel({"a": nn.Linear(2, 3)}, nn.Linear(3, 2))
