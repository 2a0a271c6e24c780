"""Models by name: what is wrong with the user's own code is said with its line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from splitsec.errors import ConfigError
from splitsec.models.load import absolute_source, load_model, load_weights

GOOD = "from torch import nn\n\n\ndef Net():\n    return nn.Linear(4, 2)\n"


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (
            "class Net:\n    def __init__(self):\n        open('/no/such')\n",
            "Net",
            r"fails at line 3 of net.py .open.*FileNotFound",
        ),
        ("def Net():\n    return {}['width']\n", "Net", r"fails at line 2 of net.py .*KeyError: 'width'"),
        (
            "def Net():\n    raise SystemExit(2)\n",
            "Net",
            r"at line 2 .* ends the program; put what is not the model",
        ),
        ("x = 1 / 0\n", "Net", r"cannot import .* fails at line 1 of net.py .*ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit()\n", "Net", r"fails at line 2 of net.py .*if __name__ == '__main__'"),
        ("import timmm\n", "Net", r"No module named 'timmm'; install it, or correct the import at line 1 of net.py"),
        ("from torch import nothere\n", "Net", r"cannot import name 'nothere'.* at line 1 of net.py"),
        ("def Net(:\n", "Net", r"invalid syntax"),
        (
            "class Net:\n    def __init__(self, width): ...\n",
            "Net",
            r"without arguments: .*'width'; write a function",
        ),
        ("def Net():\n    return int(None)\n", "Net", r"fails at line 2 of net.py .*TypeError"),
        ("def Net():\n    return {'a': 1}\n", "Net", r"makes a dict, not a torch.nn.Module"),
        ("from torch import nn\ndef Net():\n    return nn.Linear\n", "Net", r"makes a type, not a torch.nn.Module"),
        ("Net = 3\n", "Net", r"is a int, not a torch.nn.Module nor a function that makes one"),
        (GOOD, "net", r"has no 'net'; did you mean .*net.py:Net\?.* it has: Net"),
        (GOOD, "", r"does not say which model of the file; write .*net.py:NAME; it has: Net"),
    ],
)
def test_what_is_wrong_with_a_users_file_is_said_with_its_line(
    tmp_path: Path, code: str, name: str, message: str
) -> None:
    path = tmp_path / "net.py"
    path.write_text(code)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(f"{path}:{name}")
    assert len(str(caught.value).splitlines()) == 1


def test_control_a_good_file_and_where_its_path_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "net\N{GRINNING FACE}.py").write_text(GOOD)
    source = absolute_source("net\N{GRINNING FACE}.py:Net", tmp_path / "sub")
    monkeypatch.chdir("/")
    assert isinstance(load_model(source), nn.Linear)
    assert absolute_source("splitsec.models:digits_cnn", tmp_path) == "splitsec.models:digits_cnn"
    assert absolute_source("resnet18", tmp_path) == "resnet18"
    with pytest.raises(ConfigError, match="there is no file net.py; in a TOML file a path is relative to that file"):
        load_model("net.py:Net")


def test_a_module_that_is_a_file_beside_you(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="No module named 'mynet'; for the file beside you write mynet.py:NAME"):
        load_model("mynet:Net")


def test_a_model_that_needs_values_says_so_on_the_meta_device(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef Net():\n    return torch.nn.Linear(int(torch.ones(1).item()), 2)\n"
    )
    assert isinstance(load_model(f"{tmp_path / 'net.py'}:Net"), nn.Linear)
    with torch.device("meta"), pytest.raises(RuntimeError):
        load_model(f"{tmp_path / 'net.py'}:Net")


def test_weights_of_a_file_without_counters_fit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = {key: torch.full_like(value, 3) for key, value in model.state_dict().items() if "tracked" not in key}
    save_file(state, tmp_path / "weights")
    load_weights(model, tmp_path / "weights")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    save_file({"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}, tmp_path / "weights")
    message = r"do not fit Linear: missing bias; unknown extra; of another shape weight \(\(3, 2\), not \(2, 2\)\)"
    with pytest.raises(ConfigError, match=message):
        load_weights(model, tmp_path / "weights")
    assert torch.equal(model.weight, before)
