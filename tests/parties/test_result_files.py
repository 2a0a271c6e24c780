"""The files of predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from safetensors import safe_open

from splitsec.parties.predictions import Predictions
from splitsec.parties.result_files import save_predictions


def _predictions(**changed: object) -> Predictions:
    logits = torch.tensor([[0.25, 0.75], [1.0, -1.0]])
    return Predictions(torch.tensor([1, 0]), logits, [1.0, 2.0], [3.0, 4.0], 7, 10, 20, 30, **changed)  # type: ignore[arg-type]


def test_labels_logits_and_costs_are_in_one_file(tmp_path: Path) -> None:
    save_predictions(_predictions(), tmp_path / "out")
    with safe_open(tmp_path / "out" / "predictions.safetensors", "pt") as file:
        assert file.get_tensor("labels").tolist() == [1, 0]
        assert file.get_tensor("logits").shape == (2, 2)
        assert json.loads(file.metadata()["json"])["rounds"] == 7
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_people_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    save_predictions(_predictions(ids=("anna", "bert, jr.")), tmp_path)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "label", "logit0", "logit1"], ["anna", "1", "0.25", "0.75"], ["bert, jr.", "0", "1", "-1"]]
