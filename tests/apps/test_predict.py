"""`splitsec predict`: a user's own model, with all parties on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from splitsec.apps.samples import Samples
from splitsec.cli import main
from splitsec.cut import SplitModel
from splitsec.errors import ConfigError
from splitsec.models.literature import resnet20
from splitsec.models.load import load_model

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.sigmoid(self.fc1(x)))))

class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def needs(argument):
    return Net()

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.fc = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.rows(x).mean(1)))

def nothing():
    return 3

def broken():
    [].pop()
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    images = np.random.default_rng(0).standard_normal((6, 6)).astype("float32")
    np.savez(tmp_path / "images.npz", images=images, labels=np.zeros(6, dtype="int64"))
    return tmp_path


def _predict(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splitsec", "predict", *arguments]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
def test_predictions_by_a_u_are_those_in_plain(here: Path) -> None:
    """Without weights the model is as its function returns it, and the server, whose process makes others, has the
    same; with weights the tutorial's test does it."""
    done = _predict(
        here, "net.py:Net", "--cut", "fc1,fc3", "--input", "images.npz", "--batch", "4", "--json", "out.json"
    )
    assert done.returncode == 0, done.stderr
    assert "identical labels" in done.stdout
    found: dict[str, Any] = json.loads((here / "out.json").read_text())
    assert found["labels"] == found["labels_plain"]
    assert len(found["labels"]) == found["predictions"] == 6
    assert found["agreement"] == 1.0
    assert found["accuracy_plain"] == found["accuracy_encrypted"] == found["labels"].count(0) / 6
    assert found["max_abs_error"] < 5e-3
    assert min(found["online_ms_median"], found["total_ms_median"], found["rounds"], found["bytes_online"]) > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["net.py:Words", "--cut", "rows"], 2, "the model looks its input up: give whole numbers from 0 to 49"),
        (["net.py:Net", "--cut", "nope"], 2, "there is no cut 'nope'; the valid cuts are: fc1"),
        (["net.py:Nope", "--cut", "fc1"], 2, "it has: Net, Branch"),
        (["none.py:Net", "--cut", "fc1"], 2, "there is no file none.py"),
        (["net.py:needs", "--cut", "fc1"], 2, "cannot be called without arguments"),
        (["net.py:nothing", "--cut", "fc1"], 2, "makes a int, not a torch.nn.Module"),
        (["resnet81", "--cut", "fc1"], 2, "does not name a model (near: resnet18"),
        (["net.py:Branch", "--cut", "x"], 2, "net.py:15 (if x.sum() > 0:)"),
        (["net.py:Net", "--cut", "fc1", "--weights", "images.npz"], 2, "cannot read weights from images.npz"),
        (
            ["net.py:Net", "--cut", "fc1", "--weights", "other"],
            2,
            "missing fc1.bias, fc1.weight, fc2.bias, ...; unknown x",
        ),
        (["net.py:Net", "--cut", "fc1", "--weights", "wrong"], 2, "of another shape fc1.weight ((16, 5), not (16, 6))"),
        (["net.py:Net", "--cut", "fc1", "--input", "none.npz"], 2, "cannot read none.npz"),
        (
            ["net.py:Net", "--cut", "fc1", "--input", "ints.npz"],
            2,
            "the images are uint8; give real numbers",
        ),
        (["net.py:Net", "--cut", "fc1", "--input", "shape.npz"], 2, "the model cannot take images of shape 7"),
        (["net.py:Net", "--cut", "fc1", "--input", "nan.npz"], 2, "not a finite number"),
        (
            ["net.py:Net", "--cut", "fc1", "--input", "empty.npz"],
            2,
            "Net has no argument 'pictures'; it takes x (an npz file may call a single input 'images')",
        ),
        (["net.py:Net", "--cut", "fc1", "--input", "labels.npz"], 2, "give a whole number an image"),
        (["net.py:Net", "--cut", "fc1", "--input", "objects.npz"], 2, "it holds objects of Python, which are not read"),
        (["net.py:Net", "--cut", "fc1", "--input", "half.npz"], 2, "it is damaged or incomplete"),
        (
            ["net.py:Net", "--cut", "fc1", "--weights", "nan"],
            3,
            "of layer 'fc2' holds nan, which is not a finite number",
        ),
        (["net.py:broken", "--cut", "fc1"], 2, "of net.py ([].pop())"),
        (["net.py:Net", "--cut", "fc1", "--batch", "0"], 2, "at least 1"),
        (["net.py:Net", "--cut", "fc1", "--json", "/nowhere/x"], 2, "cannot write /nowhere/x"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str],
    code: int,
    message: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(here)
    good = np.load("images.npz")["images"]
    save_file({"x": torch.zeros(1)}, "other")
    state = load_model("net.py:Net").state_dict()
    save_file({**state, "fc1.weight": torch.zeros(16, 5)}, "wrong")
    save_file({**state, "fc2.weight": state["fc2.weight"] * torch.nan}, "nan")
    np.savez("objects.npz", images=np.array([{}, []], dtype=object))
    Path("half.npz").write_bytes(Path("images.npz").read_bytes()[:200])
    np.savez("ints.npz", images=(good * 10).astype("uint8"))
    np.savez("shape.npz", images=np.zeros((2, 7), dtype="float32"))
    np.savez("nan.npz", images=np.full((2, 6), np.nan, dtype="float32"))
    np.savez("empty.npz", pictures=good)
    np.savez("labels.npz", images=good, labels=np.zeros((6, 2)))
    arguments = ["predict", *arguments, *([] if "--input" in arguments else ["--input", "images.npz"])]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    # Images are asked for where they would help, and not where weights are wrong.
    assert "--calibration" not in lines[0]


def test_samples_are_read_without_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", images=np.array([{}, []], dtype=object))
    with pytest.raises(ConfigError, match="cannot read"):
        Samples.load(tmp_path / "objects.npz")


@pytest.mark.parametrize("cut", ["layer1", "layer2", "view"])
def test_resnet20_gives_the_labels_that_it_gives_in_plain(cut: str, shared_data: Path) -> None:
    """All 200 images: `splitsec predict splitsec.models.literature:resnet20 --cut layer1 ...`."""
    from support.encrypted_tail import run_tail

    model = resnet20()
    model.load_state_dict(load_file(shared_data / "weights" / "resnet20-cifar10.safetensors"), strict=False)
    split = SplitModel(model.eval(), cut).eval()
    with np.load(shared_data / "cifar10-test.npz", allow_pickle=False) as file:
        images = torch.from_numpy(file["images"][:10]).float() / 255
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean.view(3, 1, 1)) / spread.view(3, 1, 1)
    with torch.no_grad():
        plain, activation = model(images), split.front(images)
        noise = split.front(torch.randn(8, 3, 32, 32))
    opened, _, _ = run_tail(split.tail, activation, calibration=noise)
    assert torch.equal(opened.argmax(1), plain.argmax(1))
    torch.testing.assert_close(opened, plain, atol=2e-2, rtol=0)
