"""Mistakes that people make with the commands: one clear line at once, before anybody else is disturbed.

Each row is one mistake, made with an otherwise good client of the digits; its line says what is wrong, where, and what
to do. Rows that need another party are in `test_cli.py`, `parties/` and `transport/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from splitsec.cli import main
from splitsec.data.datasets import load_dataset
from splitsec.data.rows import Part
from splitsec.models.demo import SmallCNN
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.toml import write_config
from splitsec.transport import make_keys

NOWHERE = "tcp://127.0.0.1:9"
NET = "from splitsec.models import SmallCNN\n\n\ndef Net():\n    return SmallCNN(side=8)\n"


@pytest.fixture(scope="module")
def digits() -> Part:
    whole = load_dataset("digits", None, 0)
    return Part(whole.train_images[:40], whole.train_labels[:40], whole.test_images[:5], whole.test_labels[:5])


@pytest.fixture
def directory(tmp_path: Path, digits: Part) -> Path:
    """A client's directory, in which everything is right."""
    make_keys(tmp_path / "keys", ["a", "b", "server", "dealer"])
    digits.save(tmp_path / "part.safetensors")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def _client(directory: Path, **changed: Any) -> Path:
    settings = {"name": "a", "server": NOWHERE, "dealer": "tcp://127.0.0.1:10", "model": "net.py:Net", "cut": "pool"}
    settings |= {"data": "part.safetensors", "join_timeout": 0.5, "timeout": 0.5, **changed}
    path = directory / "client.toml"
    write_config(path, ClientConfig(**settings))
    return path


def _server(directory: Path, **changed: Any) -> Path:
    settings = {"address": "tcp://127.0.0.1:*", "dealer": NOWHERE, "model": "net.py:Net", "cut": "pool"}
    settings |= {"clients": ("a", "b"), "join_timeout": 0.5, "timeout": 0.5, **changed}
    path = directory / "server.toml"
    write_config(path, ServerConfig(**settings))
    return path


def _fails(role: str, path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and the one line of an error; lines of the log may stand before it."""
    with pytest.raises(SystemExit) as exit_:
        main([role, "--config", str(path)])
    lines = capsys.readouterr().err.strip().splitlines()
    said = [line for line in lines if line.startswith("splitsec: ")]
    assert len(said) == 1, lines
    assert "unexpected" not in said[0]
    assert "Traceback" not in "".join(lines)
    return int(exit_.value.code or 0), said[0]


def _with(**changed: torch.Tensor) -> Callable[[Path, Part], dict[str, Any]]:
    def make(directory: Path, part: Part) -> dict[str, Any]:
        Part(**{**vars(part), **changed}).save(directory / "bad.safetensors")
        return {"data": "bad.safetensors"}

    return make


def _spoil(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, Part], dict[str, Any]]:
    def make(directory: Path, part: Part) -> dict[str, Any]:
        return _with(**{name: change(getattr(part, name).clone())})(directory, part)

    return make


def _at(row: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[row] = value
        return tensor

    return change


def _file(name: str, content: bytes | str, **settings: Any) -> Callable[[Path, Part], dict[str, Any]]:
    def make(directory: Path, _part: Part) -> dict[str, Any]:
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return settings

    return make


def _settings(**settings: Any) -> Callable[[Path, Part], dict[str, Any]]:
    return lambda _directory, _part: settings


def _readable(directory: Path, _part: Part) -> dict[str, Any]:
    (directory / "keys" / "a.key_secret").chmod(0o644)
    return {}


def _torch_file(directory: Path, _part: Part) -> dict[str, Any]:
    torch.save(SmallCNN(side=8).state_dict(), directory / "w.pt")
    return {"weights": "w.pt"}


def _other_model(directory: Path, _part: Part) -> dict[str, Any]:
    save_file(SmallCNN(side=8, width=4).state_dict(), directory / "w.safetensors")
    return {"weights": "w.safetensors"}


def _larger(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (1, 1, 1, 1))


def _both(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[Path, Part], dict[str, Any]]:
    def make(directory: Path, part: Part) -> dict[str, Any]:
        changed = {name: change(getattr(part, name)) for name in ("train_images", "test_images")}
        return _with(**changed)(directory, part)

    return make


# By the number in the list of mistakes that were tried (or "like N"), what is done wrong, the code, and what is said.
CLIENT: list[tuple[str, Callable[[Path, Part], dict[str, Any]], int, tuple[str, ...]]] = [
    ("1", _settings(keys="other"), 5, ("no usable secret key for 'a' at", "splitsec keys --out")),
    ("6", _settings(server="127.0.0.1:7855"), 7, ("server = '127.0.0.1:7855'", "write tcp:// before it")),
    ("like 6", _settings(dealer="http://x:1"), 7, ("dealer = 'http://x:1' begins with http://",)),
    ("like 6, port", _settings(server="tcp://x:99999"), 7, ("the port '99999', which cannot be",)),
    ("5", _settings(), 6, ("server at tcp://127.0.0.1:9", "nobody listens there: start it, or correct the address")),
    ("7", _settings(server="tcp://no-host.invalid:5"), 7, ("the host 'no-host.invalid' in the address of server",)),
    ("8", _settings(dealer=NOWHERE), 7, ("server and dealer are both tcp://127.0.0.1:9",)),
    ("9", _settings(model="nett.py:Net"), 2, ("there is no file", "nett.py; in a TOML file a path is relative")),
    ("like 9", _settings(model="net.py:Nett"), 2, ("has no 'Nett'", "did you mean", "net.py:Net?")),
    ("like 9, no name", _settings(model="net.py"), 2, ("does not say which model", "it has: Net")),
    ("12", _settings(cut="poool"), 2, ("there is no cut 'poool'", "conv1")),
    ("like 12", _settings(cut=""), 2, ("needs a cut", "splitsec cuts")),
    (
        "14",
        _both(lambda one: one.expand(-1, 3, -1, -1).contiguous()),
        2,
        ("bad.safetensors: train_images are 3x8x8 each", "layer 'conv1' takes 1 channel and gets 3"),
    ),
    ("15", _both(_larger), 2, ("train_images are 1x10x10 each", "layer 'fc1' takes 512 features and gets 800")),
    ("like 15", _spoil("test_images", _larger), 2, ("train_images are 1x8x8", "test_images 1x10x10")),
    ("like 15, flat", _both(lambda one: one.flatten(1)), 2, ("takes channels, height and width of each, and gets 64",)),
    ("16", _spoil("train_labels", _at(7, 10)), 2, ("train_labels hold 10 in row 7", "10 classes, from 0 to 9")),
    ("16, negative", _spoil("train_labels", _at(7, -1)), 2, ("train_labels hold -1 in row 7", "classes count from 0")),
    ("like 16", _spoil("test_labels", _at(2, 12)), 2, ("test_labels hold 12 in row 2",)),
    ("17", _spoil("train_images", _at(3, float("nan"))), 2, ("train_images hold nan in row 3",)),
    ("like 17", _spoil("test_images", _at(4, float("inf"))), 2, ("test_images hold inf in row 4",)),
    (
        "18",
        _with(train_images=torch.zeros(0, 1, 8, 8), train_labels=torch.zeros(0).long()),
        2,
        ("holds no training images",),
    ),
    ("20", _both(lambda one: (255 * one).byte()), 2, ("are uint8, such as pixels", "images.float() / 255")),
    ("20, float64", _both(torch.Tensor.double), 2, ("are float64 and must be float32", "images.float()")),
    ("20, labels", _spoil("train_labels", torch.Tensor.int), 2, ("are int32 and must be int64: labels.long()",)),
    ("20, float", _spoil("train_labels", lambda one: one + 0.5), 2, (".5 in row 0", "a regression cannot be trained")),
    ("like 20", _spoil("train_labels", lambda one: torch.eye(10)[one]), 2, ("one class a row", "labels.argmax(1)")),
    ("like 20, whole", _both(torch.Tensor.long), 2, ("are int64, but the model computes with them",)),
    (
        "29",
        _file("net.py", "def Net():\n    open('/no/file')\n"),
        2,
        ("fails at line 2 of net.py", "FileNotFoundError"),
    ),
    ("like 29", _file("net.py", "import sys\nsys.exit(3)\n"), 2, ("fails at line 2 of net.py", "if __name__ ==")),
    ("like 29, needs", _file("net.py", "def Net(width):\n    pass\n"), 2, ("cannot be called without arguments",)),
    ("like 29, dict", _file("net.py", "def Net():\n    return {}\n"), 2, ("makes a dict, not a torch.nn.Module",)),
    ("30", _file("net.py", "def Net(:\n"), 2, ("cannot import", "invalid syntax")),
    ("30, package", _file("net.py", "import timmmm\n"), 2, ("No module named 'timmmm'", "at line 1 of net.py")),
    ("40", _other_model, 2, ("the weights do not fit the segment", "conv1.weight")),
    ("41", _torch_file, 2, ("cannot read weights from", "torch.save", "safetensors.torch.save_file")),
    ("42", _file("rows.csv", "a,b,y\n1,2,0\n", data="rows.csv"), 2, ("it is text, such as CSV", "splitsec.Part(")),
    ("43", _settings(data="none.safetensors"), 2, ("none.safetensors: the file does not exist",)),
    ("49", _readable, 5, ("a.key_secret is not secret", "chmod 600")),
    ("like 23", _settings(batch_size=0), 2, ("batch_size = 0: write a whole number from 1 on",)),
    ("like 25", _settings(epochs=3), 2, ("epochs = 3 does nothing at a client of clients with rows", "leave it out")),
    ("like 39", _settings(train=False), 2, ("train = false", "weights = 'front.safetensors'")),
    ("like 47", _file("out", "x", out="out"), 2, ('out = "out" is a file, and must be a directory',)),
    ("like 1", _settings(name="Ward A"), 2, ("'Ward A' cannot name a party",)),
]


@pytest.mark.parametrize(("make", "code", "said"), [pytest.param(*row[1:], id=row[0]) for row in CLIENT])
def test_a_clients_mistake(
    make: Callable[[Path, Part], dict[str, Any]],
    code: int,
    said: tuple[str, ...],
    directory: Path,
    digits: Part,
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = time.monotonic()
    found, line = _fails("client", _client(directory, **make(directory, digits)), capsys)
    assert [text for text in said if text not in line] == [], line
    assert found == code
    # The time limits of a run are minutes: whatever is known without the others does not take them.
    assert time.monotonic() - began < 20


SERVER: list[tuple[str, Callable[[Path, Part], dict[str, Any]], int, tuple[str, ...]]] = [
    ("22", _settings(epochs=0), 2, ("epochs = 0", "untrained", "tail.safetensors")),
    ("23", _settings(learning_rate=-1.0), 2, ("learning_rate = -1: write a number above 0",)),
    ("28", _settings(clients=("a",)), 2, ("at least two different clients",)),
    ("like 28", _settings(clients=("a", "a")), 2, ("clients names a twice",)),
    ("like 28, no key", _settings(clients=("a", "c")), 5, ("no public key of c; put NAME.key",)),
    ("like 28, server", _settings(clients=("a", "server")), 2, ("cannot be called 'server'",)),
    ("33", _settings(), 6, ("a, b did not come within 0.5 s",)),
    ("41", _torch_file, 2, ("cannot read weights from", "torch.save", "safetensors.torch.save_file")),
    ("like 41", _file("c", "x", calibration="c"), 2, ("cannot read calibration from", "it is text")),
    ("like 23", _settings(timeout=-1.0), 2, ("timeout = -1: write seconds above 0",)),
    ("like 23, halves", _settings(layout="model_parts"), 2, ("does nothing at the server of parts of a model",)),
]


@pytest.mark.parametrize(("make", "code", "said"), [pytest.param(*row[1:], id=row[0]) for row in SERVER])
def test_a_servers_mistake(
    make: Callable[[Path, Part], dict[str, Any]],
    code: int,
    said: tuple[str, ...],
    directory: Path,
    digits: Part,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, line = _fails("server", _server(directory, **make(directory, digits)), capsys)
    assert [text for text in said if text not in line] == [], line
    assert found == code


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "there is no setting 'epoch'; did you mean epochs?"),
        ('epochs = "3"', 'epochs wants a whole number, not the text "3"'),
        ("epochs = ", "is not TOML: "),
    ],
)
def test_25_to_27_a_file_that_is_wrong(
    text: str, said: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = directory / "bad.toml"
    path.write_text(f'address = "tcp://127.0.0.1:*"\ndealer = "{NOWHERE}"\nmodel = "net.py:Net"\n{text}\n')
    found, line = _fails("server", path, capsys)
    assert found == 2
    assert said in line


def test_settings_of_another_party(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "other.toml"
    path.write_text(f'address = "tcp://127.0.0.1:*"\ndealer = "{NOWHERE}"\nclients = ["a", "b"]\n')
    found, line = _fails("client", path, capsys)
    assert found == 2
    assert "'clients' is a setting of the server and not of the client" in line or "'address' is a setting of" in line


def test_inputs_that_are_no_npz_file(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "x.csv").write_text("1,2\n")
    for name, reason in {"x.csv": "it is text, such as CSV", "none.npz": "the file does not exist"}.items():
        with pytest.raises(SystemExit):
            main(["predict", "splitsec.models:digits_cnn", "--cut", "pool", "--input", str(directory / name)])
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert reason in line
        assert "numpy.savez(PATH, images=...)" in line
        assert "pickle" not in line


def test_11_a_model_beside_its_settings_wherever_the_command_was_started(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "net.py").write_text(NET)
    monkeypatch.chdir("/")
    found, line = _fails("client", _client(directory, model="sub/net.py:Net"), capsys)
    # It came as far as the server, who is not there.
    assert found == 6
    assert "nobody listens there" in line


def test_19_44_what_is_seldom_meant_is_said_before_the_run(
    directory: Path, digits: Part, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    single = Part(1e6 * digits.train_images, torch.full((40,), 3), digits.test_images, digits.test_labels)
    single.save(directory / "odd.safetensors")
    with pytest.raises(SystemExit):
        main(["client", "--config", str(_client(directory, data="odd.safetensors"))])
    said = caplog.text + capfd.readouterr().err
    assert "all 40 training labels are 3" in said
    assert "encrypted predictions take magnitudes below about 256: scale the images" in said


def test_control_nothing_is_said_of_good_data(
    directory: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main(["client", "--config", str(_client(directory))])
    said = caplog.text + capfd.readouterr().err
    assert "training labels" not in said
    assert "scale the images" not in said


def test_token_ids_are_data_for_a_model_with_an_embedding(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from torch import nn\n\n\ndef Net():\n    return nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), "
    (directory / "text.py").write_text(code + "nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))\n")
    tokens, labels = torch.randint(0, 50, (12, 6)), torch.arange(12) % 3
    Part(tokens, labels, tokens[:2], labels[:2]).save(directory / "text.safetensors")
    found, line = _fails("client", _client(directory, model="text.py:Net", cut="2", data="text.safetensors"), capsys)
    assert (found, "nobody listens there" in line) == (6, True), line
    tokens[5, 2] = 50
    Part(tokens, labels, tokens[:2], labels[:2]).save(directory / "text.safetensors")
    found, line = _fails("client", _client(directory, model="text.py:Net", cut="2", data="text.safetensors"), capsys)
    assert found == 2
    assert "train_images hold 50 in row 5" in line
    assert "give numbers from 0 to 49" in line


def test_a_name_that_an_encoding_lacks_ends_no_command(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "net\N{GRINNING FACE}.py"
    (directory / odd).write_text(NET)
    found, _ = _fails("client", _client(directory, model=f"{odd}:Net"), capsys)
    assert found == 6
    found, line = _fails("client", _client(directory, model=f"no{odd}:Net"), capsys)
    assert found == 2
    assert f"no{odd}" in line


def test_a_dealers_mistakes(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = directory / "dealer.toml"
    write_config(path, DealerConfig(address="127.0.0.1:5"))
    assert "write tcp:// before it" in _fails("dealer", path, capsys)[1]
    write_config(path, DealerConfig(address="tcp://127.0.0.1:*", minimum_clients=1))
    assert "minimum_clients = 1: write a whole number from 2 on" in _fails("dealer", path, capsys)[1]
    (directory / "file").write_text("")
    write_config(path, DealerConfig(address="tcp://127.0.0.1:*", checkpoints="file"))
    assert 'checkpoints = "file" is a file' in _fails("dealer", path, capsys)[1]


def test_a_directory_is_one_partys(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parties beside each other that name one directory would overwrite each other's files."""
    assert _fails("client", _client(directory, out="out"), capsys)[0] == 6
    code, line = _fails("client", _client(directory, name="b", out="out"), capsys)
    assert (code, 'out = "out" is the directory of a' in line, 'such as out = "out-b"' in line) == (2, True, True), line
    assert _fails("server", _server(directory, checkpoints="kept"), capsys)[0] == 6
    code, line = _fails("client", _client(directory, checkpoints="kept"), capsys)
    assert (code, 'checkpoints = "kept" is the directory of server' in line) == (2, True), line


def test_control_a_party_takes_its_directory_again(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert _fails("client", _client(directory, out="out", checkpoints="out"), capsys)[0] == 6
        # The tail has another name than what clients save.
        assert _fails("server", _server(directory, out="out", checkpoints="kept"), capsys)[0] == 6
