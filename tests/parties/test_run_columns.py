"""Clients with columns from their TOML files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from splitsec.cut import Origin
from splitsec.cut.joined import CUT, VerticalModel
from splitsec.cut.segment_files import FrontFacts, read_record, save_segment
from splitsec.data.columns import Columns, ids_of
from splitsec.data.standardisation import Standardisation
from splitsec.errors import ConfigError
from splitsec.events import ignore
from splitsec.local.processes import PartyGroup
from splitsec.models.load import load_model
from splitsec.parties.predictions import Predictions
from splitsec.parties.result_files import save_predictions
from splitsec.parties.run_columns import run_columns
from splitsec.settings.parties import ClientConfig
from splitsec.transport import make_keys

MODEL = """
from torch import nn
from splitsec.cut.joined import VerticalModel

def two():
    return VerticalModel(
        {"bank": nn.Sequential(nn.Linear(2, 8), nn.ReLU()), "shop": nn.Sequential(nn.Linear(3, 8), nn.ReLU())},
        nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)),
    )
"""
NAMES = ("bank", "shop")


def _write(directory: Path, tag: str, count: int, *, first: int, shift: float, labels: bool = True) -> torch.Tensor:
    """Files of people whose columns are far from mean 0 and spread 1; returns their labels."""
    generator = torch.Generator().manual_seed(first)
    scale = torch.tensor([1.0, 5, 1, 2, 10])
    values = (torch.randn(count, 5, generator=generator) + shift) * scale + torch.tensor([3.0, 0, -2, 0, 50])
    truth = ((values[:, 0] - 3) + values[:, 3] / 2 > 0).long()
    for name, columns in (("bank", slice(0, 2)), ("shop", slice(2, 5))):
        with (directory / f"{tag}-{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            labelled = name == "bank" and labels
            writer.writerow(["id", *(["y"] if labelled else []), *(f"{name}{at}" for at in range(5)[columns])])
            for row in torch.randperm(count, generator=generator).tolist():
                label = [int(truth[row])] if labelled else []
                writer.writerow([f"p{first + row}", *label, *(f"{value:.6g}" for value in values[row, columns])])
    return truth


def _run(directory: Path, server: str, clients: Mapping[str, str]) -> None:
    """All parties as processes of their own, each from its TOML file."""
    directory.mkdir()
    keys = 'keys = "../keys"\n'
    with PartyGroup() as group:
        (directory / "dealer.toml").write_text(f'{keys}address = "tcp://127.0.0.1:*"\n')
        group.start("dealer", "dealer", directory / "dealer.toml")
        dealer = group.wait_listening("dealer", 60)
        shared = f'{keys}dealer = "{dealer}"\nmodel = "{directory.parent}/model.py:two"\nlayout = "vertical"\n'
        (directory / "server.toml").write_text(
            f'{shared}address = "tcp://127.0.0.1:*"\nclients = ["bank", "shop"]\nout = "server"\n{server}\n'
        )
        group.start("server", "server", directory / "server.toml")
        address = group.wait_listening("server", 60)
        for name, settings in clients.items():
            (directory / f"{name}.toml").write_text(
                f'{shared}name = "{name}"\nserver = "{address}"\nout = "{name}"\nbatch_size = 8\n{settings}\n'
            )
            group.start("client", name, directory / f"{name}.toml")
        group.wait_finished({"server", *clients}, 200)


def _predicted(path: Path) -> tuple[tuple[str, ...], torch.Tensor, torch.Tensor]:
    tensors = load_file(path / "predictions.safetensors")
    with (path / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(row["id"] for row in table) == ids_of(tensors)
    assert [int(row["label"]) for row in table] == tensors["labels"].tolist()
    return ids_of(tensors), tensors["labels"], tensors["logits"]


@pytest.mark.slow
def test_train_then_predict_people_who_come_later(tmp_path: Path) -> None:
    """The one that asks for the later ones has no labels. Two controls: the mean and spread of the later people
    themselves, which are one spread higher, give other results; and the server's own file belongs to this run."""
    (tmp_path / "model.py").write_text(MODEL)
    make_keys(tmp_path / "keys", ["dealer", "server", *NAMES])
    _write(tmp_path, "first", 300, first=0, shift=0.0)
    truth = _write(tmp_path, "later", 40, first=1000, shift=1.0, labels=False)
    data = {tag: {name: f'data = "../{tag}-{name}.csv"' for name in NAMES} for tag in ("first", "later")}
    _run(tmp_path / "train", "epochs = 15\nbatch_size = 16\nseed = 1\nlearning_rate = 0.01", data["first"])
    weights = {name: f'weights = "../train/{name}/front.safetensors"\ntrain = false' for name in NAMES}
    _run(
        tmp_path / "use",
        'epochs = 0\nweights = "../train/server/tail.safetensors"',
        {name: f"{data['later'][name]}\n{weights[name]}\nask = {str(name == 'shop').lower()}" for name in NAMES},
    )
    assert not (tmp_path / "use" / "bank" / "predictions.csv").exists()
    ids, labels, logits = _predicted(tmp_path / "use" / "shop")
    assert sorted(ids) == sorted(f"p{1000 + row}" for row in range(40))

    model = load_model(f"{tmp_path}/model.py:two")
    assert isinstance(model, VerticalModel)
    for name in NAMES:
        # Plain torch reads the files: beside the parameters there is nothing in their tensors.
        model.fronts[name].load_state_dict(load_file(tmp_path / "train" / name / "front.safetensors"))
    model.tail.load_state_dict(load_file(tmp_path / "train" / "server" / "tail.safetensors"))
    columns, own = [], []
    for name in NAMES:
        record = read_record(tmp_path / "train" / name / "front.safetensors")
        assert record is not None
        assert record.columns is not None
        later = Columns.load(tmp_path / f"later-{name}.csv")
        later = later.take([later.ids.index(text) for text in ids])
        columns.append(Standardisation.from_json(record.columns).apply(later.values))
        own.append(later.standardised(len(ids)).values)
    with torch.no_grad():
        plain, other = model.eval()(*columns), model(*own)
    torch.testing.assert_close(logits, plain, atol=5e-3, rtol=0)
    right = torch.tensor([int(truth[int(text.removeprefix("p")) - 1000]) for text in ids])
    accuracy = (labels == right).float().mean().item()
    print("accuracy", accuracy, "plain", (plain.argmax(1) == right).float().mean().item())
    assert accuracy == (plain.argmax(1) == right).float().mean().item() > 0.85
    assert (other.argmax(1) == right).float().mean().item() < accuracy - 0.1


def _config(**changed: Any) -> ClientConfig:
    settings: dict[str, Any] = {
        "name": "bank",
        "server": "tcp://127.0.0.1:9",
        "dealer": "tcp://127.0.0.1:9",
        "layout": "vertical",
        "data": "first-bank.csv",
        **changed,
    }
    return ClientConfig(**settings)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"train": False}, "with train = false and no weights the front would be untrained"),
        ({"train": False, "weights": "plain.safetensors"}, "has no record of the run that trained it"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"train": False, "weights": "shop.safetensors"}, "shop.safetensors holds the front of shop, and this is bank"),
        ({"weights": "tail.safetensors"}, "holds the tail of server, and a front is wanted here"),
        ({"train": False, "weights": "bare.safetensors"}, "lacks the mean and spread of the front's columns"),
        ({"train": False, "weights": "bank.safetensors"}, "trained with the columns 'a', 'b'; this data lacks"),
        ({"data": "float.csv"}, "float.csv, line 3, column 'y': the label is 0.613"),
        ({"data": "beyond.csv"}, "beyond.csv: labels hold 2 in row 1 (counted from 0), but the model has 2 classes"),
        ({"data": "wide.csv"}, "the front cannot take the 3 columns (a, b, c) (its first linear layer takes 2)"),
        ({"codes": ("kind",)}, "codes: there is no column 'kind'; there are 'bank0', 'bank1'"),
        ({"codes": ("bank0",)}, "column 'bank0' holds codes that the front looks up"),
        ({"name": "baker"}, "the model has no front for baker; it has: bank, shop"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_spoken_to(
    changed: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    make_keys(tmp_path / "keys", ["dealer", "server", "bank", "baker"])
    _write(tmp_path, "first", 8, first=0, shift=0.0)
    (tmp_path / "float.csv").write_text("id,y,a,b\np1,0,1,2\np2,0.613,1,2\n")
    (tmp_path / "beyond.csv").write_text("id,y,a,b\np1,0,1,2\np2,2,3,4\n")
    (tmp_path / "wide.csv").write_text("id,y,a,b,c\np1,0,1,2,3\np2,1,3,4,5\n")
    model = load_model(f"{tmp_path}/model.py:two")
    assert isinstance(model, VerticalModel)
    front = model.fronts["bank"].state_dict()
    save_file(front, tmp_path / "plain.safetensors")
    origin = Origin(mark="0" * 32, run="1" * 32, rounds=2)
    scale = Standardisation.none(("a", "b")).as_json()
    for name, role, party, columns in (
        ("shop", "front", "shop", scale),
        ("bank", "front", "bank", scale),
        ("bare", "front", "bank", None),
        ("tail", "tail", "server", None),
    ):
        save_segment(
            tmp_path / f"{name}.safetensors",
            front,
            role=role,  # type: ignore[arg-type]
            party=party,
            cut=CUT,
            origin=origin,
            front=FrontFacts(columns=columns),
        )
    with pytest.raises(ConfigError) as caught:
        run_columns(_config(model=f"{tmp_path}/model.py:two", **changed), tmp_path, ignore, None)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("logits", [True, False])
def test_predictions_name_whom_they_are_of(logits: bool, tmp_path: Path) -> None:
    labels, values = torch.tensor([1, 0]), torch.tensor([[0.25, 1.5], [2, -1]])
    save_predictions(
        Predictions(labels, values if logits else None, [1.0], [1.0], 1, 2, 3, 4, ids=("p7", "é,1")), tmp_path / "out"
    )
    tensors = load_file(tmp_path / "out" / "predictions.safetensors")
    assert ids_of(tensors) == ("p7", "é,1")
    assert ("logits" in tensors) == logits
    text = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert text == (
        ["id,label,logit0,logit1", "p7,1,0.25,1.5", '"é,1",0,2,-1'] if logits else ["id,label", "p7,1", '"é,1",0']
    )
