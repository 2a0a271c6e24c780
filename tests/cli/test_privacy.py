"""The commands about privacy: what they write, and one clear line for what cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitsec.apps import pate
from splitsec.cli import main
from splitsec.privacy.accounting import epsilon_of
from splitsec.privacy.history import RunHistory
from splitsec.privacy.ledger import NOISY, RECORD, Ledger, Point, ledger_path


def _main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("demo --privacy.epsilon 0", "write a number above 0"),
        ("demo --privacy.epsilon -2", "write a number above 0"),
        ("demo --privacy.epsilon 3 --privacy.delta 0.1", "above 1/1437"),
        ("demo --privacy.epsilon 3 --layout vertical", "columns are joined get gradients row by row"),
        ("demo --privacy.epsilon 3 --layout model_parts", "trained by its client alone"),
        ("demo --privacy.epsilon 3 --aggregation none", "privacy.local = true"),
        ("demo --privacy.epsilon 3 --privacy.nopeek 1", "mixes the rows"),
        ("demo --privacy.activation-noise 0.1", "multiple of their clip"),
        ("privacy ledger nowhere", "there is no nowhere"),
        ("pate --delta 0.5", "above 1/1100"),
        ("pate --teachers 1", "choose 2 to 1000"),
        ("pate --queries 5000", "there are 337 public rows"),
        ("pate --vote-noise 0", "nothing is promised"),
        ("audit splitsec.models:digits_cnn --cut pool", "say what data"),
        ("audit splitsec.models:digits_cnn --cut nope --dataset digits --epochs 0", "valid cuts are"),
        ("cuts splitsec.models:digits_cnn --input 1,8,8 --leakage nofile.npz", "cannot read"),
    ],
)
def test_one_line_says_what_to_do(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main(*arguments.split()) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_cut_without_a_batch_dimension(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "folding.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 72)), nn.Linear(72, 10))\n"
    )
    model = f"{tmp_path / 'folding.py'}:make"
    assert _main("audit", model, "--cut", "1", "--dataset", "digits", "--epochs", "0") == 2
    assert "the batch must stay the first dimension" in capsys.readouterr().err


def test_the_ledger_as_table_file_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger("client-1", "0123456789abcdef" * 2, 3.0, 1e-5, "rdp")
    ledger.charge(RECORD, covers="one record", noise=1.2, rate=0.1, steps=50, parameters={"clip": 1.0, "shares": 3})
    ledger.points += [Point(50, 5.0, 50, ledger.spent, 0.8)]
    ledger.save(ledger_path(tmp_path / "client-1", ledger.run))
    written, drawn = tmp_path / "ledger.json", tmp_path / "plot.svg"
    assert _main("privacy", "ledger", str(tmp_path), "--json", str(written), "--plot", str(drawn)) == 0
    (found,) = json.loads(written.read_text())
    assert found["spent"] == ledger.spent
    assert found["epsilon_against_another_client"] > ledger.spent
    assert found["entries"][0]["steps"] == 50
    assert "<svg" in drawn.read_text()
    said = capsys.readouterr().out
    assert "DP-SGD" in said
    assert f"{ledger.spent:.3f}" in said
    assert "share records" not in said


def test_ledgers_of_runs_over_the_same_data_are_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "client-1"
    for run in "abc":
        data = RunHistory(directory).note(torch.full((4, 2), float(run == "c")))
        ledger = Ledger("client-1", run * 32, 3.0, 1e-5, "rdp", data=data)
        ledger.charge(RECORD, covers="one record", noise=1.2, rate=0.1, steps=50, parameters={})
        ledger.charge(NOISY, covers="one row", noise=4.0, rate=1.0, steps=5, parameters={}, accountant="rdp")
        ledger.save(ledger_path(directory, ledger.run))
    assert _main("privacy", "ledger", str(tmp_path)) == 0
    together = epsilon_of([(1.2, 0.1, 100)], delta=1e-5, accountant="rdp")
    said = capsys.readouterr().out
    assert "runs aaaaaaaa, bbbbbbbb share records" in said
    assert f"has spent epsilon {together:.3f} at" in said
    noisy = epsilon_of([(4.0, 1.0, 10)], delta=1e-5, accountant="rdp")
    assert f"has spent on noisy activations, against the server, epsilon {noisy:.3f} at" in said


def test_pate_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def teach(*given: Any) -> tuple[torch.Tensor, list[float]]:
        """Teachers who know the labels, but for one."""
        _, _, teachers, whole, rows, queries, _ = given
        known = {
            image.numpy().tobytes(): int(label)
            for image, label in zip(whole.train_images, whole.train_labels, strict=True)
        }
        right = torch.tensor([known[image.numpy().tobytes()] for image in queries])
        assert len(rows) == 1100
        return torch.stack([right] * (teachers - 1) + [(right + 1) % 10]), [1.0] * (teachers - 1) + [0.0]

    monkeypatch.setattr(pate, "_teach", teach)
    written = tmp_path / "pate.json"
    assert _main("pate", "--json", str(written), "--vote-noise", "1", "--threshold-noise", "1") == 0
    found = json.loads(written.read_text())
    wanted = {"epsilon", "delta", "queries", "answered", "student_accuracy", "label_accuracy"}
    assert wanted <= set(found)
    assert found["queries"] == 22
    assert found["answered"] == 22
    assert found["label_accuracy"] == 1
    assert found["student_accuracy"] > 0.75
    assert 0 < found["epsilon"] < found["epsilon_data_independent"]


def test_an_audit_writes_page_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    images = generator.random((120, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    page, written = tmp_path / "audit.html", tmp_path / "audit.json"
    settings = [
        "--cut",
        "relu1,fc1",
        "--input",
        str(tmp_path / "images.npz"),
        "--attacks",
        "optimise",
        "--victims",
        "4",
    ]
    files = ["--html", str(page), "--json", str(written)]
    assert _main("audit", "splitsec.models:digits_cnn", *settings, *files) == 0
    assert page.read_text().startswith("<!doctype html>")
    titles = [chapter["title"] for chapter in json.loads(written.read_text())]
    assert [title.split(",")[0] for title in titles] == ["Cut at 'relu1'", "Cut at 'fc1'"]
    shown = capsys.readouterr()
    assert "distance correlation" in shown.out
    assert "[green]" not in shown.out
    said = shown.err.splitlines()
    assert re.fullmatch("audit: about [0-9]+ (s|minutes) on this machine; --thorough would take about .*", said[0])
    assert [line.split(";")[0] for line in said[1:3]] == [
        "audit: optimisation at 'relu1' (1 of 2)",
        "audit: optimisation at 'fc1' (2 of 2)",
    ]
    assert "quick attacks" in page.read_text()
    assert _main("audit", "splitsec.models:digits_cnn", *settings, "--thorough", "--html", str(page)) == 0
    assert "--thorough" not in capsys.readouterr().err
    assert "thorough attacks" in page.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_private_demo_of_processes_and_its_ledgers(tmp_path: Path) -> None:
    written, run = tmp_path / "demo.json", tmp_path / "run"
    settings = ["--privacy.epsilon", "8", "--epochs", "10", "--json", str(written), "--checkpoints", str(run)]
    assert _main("demo", *settings) == 0
    found = json.loads(written.read_text())
    assert 7.9 < found["epsilon"] <= 8
    assert found["delta"] == 1e-5
    assert found["agreement"] == 1
    assert _main("privacy", "ledger", str(run), "--json", str(tmp_path / "ledgers.json")) == 0
    ledgers = json.loads((tmp_path / "ledgers.json").read_text())
    assert [ledger["spent"] for ledger in ledgers] == [found["epsilon"]] * 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pate_with_teachers_of_its_own(tmp_path: Path) -> None:
    written = tmp_path / "pate.json"
    assert _main("pate", "--json", str(written)) == 0
    found = json.loads(written.read_text())
    assert found["student_accuracy"] >= 0.85
    assert found["epsilon"] < 10
