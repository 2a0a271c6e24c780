"""Every setting of every layout acts or is refused by its name; what cannot be is said in one line."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from splitsec.cut import Origin
from splitsec.cut.joined import CUT
from splitsec.cut.segment_files import FrontFacts, save_segment
from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.data.standardisation import Standardisation
from splitsec.errors import AddressError, ConfigError, SplitsecError
from splitsec.models.demo import breast_columns, digits_cnn, digits_half
from splitsec.parties import run as running
from splitsec.parties import run_columns as running_columns
from splitsec.parties.predictions import Predictions
from splitsec.settings.checks import check_settings, idle_settings, layout_of, read_settings, without_idle
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.privacy import Privacy
from splitsec.settings.run import RunSettings
from splitsec.transport import make_keys

SERVER, DEALER = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"
_COMMON = {"model": "splitsec.models:digits_cnn", "cut": "pool"}
_COLUMNS = {"cut": "", "layout": "vertical", "model": "splitsec.models:breast_columns"}
_PARTS = {"cut": "", "layout": "model_parts"}


def _rows(**changed: Any) -> ClientConfig:
    return ClientConfig(**{"name": "a", "server": SERVER, "dealer": DEALER, **_COMMON, "data": "part", **changed})


def _server(**changed: Any) -> ServerConfig:
    return ServerConfig(**{"address": SERVER, "dealer": DEALER, **_COMMON, "clients": ("a", "b"), **changed})


LAYOUTS: dict[str, Any] = {
    "dealer": DealerConfig(address=DEALER),
    "server": _server(),
    "server of a U": _server(cut="pool,fc2"),
    "server of predictions": _server(epochs=0, weights="whole"),
    "server of columns": _server(**_COLUMNS),
    "server of later columns": _server(**_COLUMNS, epochs=0, weights="columns-tail"),
    "server of parts": _server(**_PARTS, model=""),
    "client": _rows(),
    "client of a U": _rows(cut="pool,fc2"),
    "client of predictions": _rows(train=False, weights="whole"),
    "client of predictions of a U": _rows(train=False, weights="whole", cut="pool,fc2"),
    "client of columns": _rows(**_COLUMNS, data="columns.safetensors", name="client-1"),
    "client of later columns": _rows(
        **_COLUMNS, data="columns.safetensors", name="client-1", train=False, weights="columns-front"
    ),
    "client of parts": _rows(**_PARTS, model="splitsec.models:digits_half", weights="half"),
}

# Another value of each setting, which is not its default. Settings of the same name are of the same kind.
OTHER: dict[str, Any] = {
    "address": "tcp://127.0.0.1:7001",
    "server": "tcp://127.0.0.1:7001",
    "dealer": "tcp://127.0.0.1:7002",
    "model": "net.py:Net",
    "clients": ("a", "c"),
    "name": "client-2",
    "data": "other-part",
    "cut": "relu3",
    "keys": "other-keys",
    "minimum_clients": 3,
    "checkpoints": "kept",
    "threads": 2,
    "cpu": 0,
    "epochs": 7,
    "batch_size": 32,
    "train_batch_size": 5,
    "learning_rate": 0.5,
    "aggregation": "relay",
    "steps_per_round": 4,
    "batches_in_flight": 3,
    "proximal": 0.25,
    "server_momentum": 0.5,
    "decay": True,
    "compression": "float16",
    "privacy": Privacy(activation_clip=2.0),
    "row_order_seed": 9,
    "join": "sum",
    "held_out": 0.5,
    "seed": 5,
    "weights": "other-weights",
    "calibration": "calibration",
    "out": "out",
    "stay": True,
    "predictions_per_client": 100,
    "counts": "counts",
    "answers": "label",
    "answer_bits": 8,
    "session_ports": "40000-40100",
    "timeout": 3.0,
    "round_timeout": 4.0,
    "join_timeout": 5.0,
    "predictions": 1,
    "ahead": 3,
    "reveal": "label",
    "checked": True,
    "comparison": "dcf",
    "engine": "crypten",
    "train": False,
    "ask": False,
    "standardise": False,
    "codes": ("1",),
    "activation_clip": 2.5,
    "ledgers": "ledgers",
    "epsilon_limit": 5.0,
    "repeatable": True,
}


class _Recorder:
    """Stands for a party's object, and writes down what it is told."""

    def __init__(self, log: list[str], predictions: Predictions) -> None:
        self._log = log
        self._predictions = predictions

    def __call__(self, *arguments: Any, **named: Any) -> _Recorder:
        self._note("made", arguments, named)
        self._front = arguments[0] if arguments else None
        self.tail = self._front
        return self

    of = __call__

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name == "columns":
            return Columns(("x", "y", "z"), torch.zeros(3, 10))
        if name == "standardisation":
            return Standardisation.none(("1",))
        if name == "training_rows":
            return 1
        if name == "address":
            return SERVER

        def note(*arguments: Any, **named: Any) -> Any:
            front = getattr(self, "_front", None)
            hooks = len(front._forward_hooks) if isinstance(front, torch.nn.Module) else 0
            self._note(name, arguments, {**named, "hooks": hooks})
            if "on_trained" in named:
                named["on_trained"]()
            if name == "train":
                return RunSettings(clients=("a", "b"))
            return self._predictions if name.startswith("predict") else None

        return note

    def _note(self, what: str, arguments: Any, named: Any) -> None:
        self._log.append(f"{what} {_seen(arguments)} {_seen(named)}")


def _seen(value: Any) -> str:
    """A value as text that says what is in it."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()[:8] + str(tuple(value.shape))
    if isinstance(value, torch.nn.Module):
        return type(value).__name__ + _seen(value.state_dict())
    if isinstance(value, (Part, Columns)) or (is_dataclass(value) and not isinstance(value, type)):
        return type(value).__name__ + _seen(vars(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_seen(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_seen, value)) + "]"
    if callable(value):
        return "function"
    return repr(value)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that the settings name."""
    here: Path = tmp_path_factory.mktemp("settings")
    for keys in ("keys", "other-keys"):
        make_keys(here / keys, ["server", "dealer", "a", "b", "c", "client-1", "client-2"])
    for index, name in enumerate(("part", "other-part", "columns.safetensors", "other-columns.safetensors")):
        torch.manual_seed(index)
        images = torch.rand(4, 1, 8, 8)
        labels = torch.tensor([0, 1, 0, 1])
        if "part" in name:
            Part(images, labels, images, labels).save(here / name)
        else:
            Columns(("x", "y", "z", "w"), torch.rand(4, 10), labels).save(here / name)
    for index, name in enumerate(("whole", "other-weights")):
        torch.manual_seed(index)
        save_file({**digits_cnn().state_dict(), "calibration": torch.zeros(1)}, here / name)
    torch.manual_seed(7)
    save_file(digits_half().state_dict(), here / "half")
    save_file({"activations": torch.rand(3, 32, 4, 4)}, here / "calibration")
    (here / "net.py").write_text(
        "from splitsec.models import SmallCNN, breast_columns\n\ndef Net():\n    return SmallCNN(side=8, width=4)\n"
        "\ndef Half():\n    return SmallCNN(side=8, width=2)\n"
        "\ndef Columns():\n    model = breast_columns()\n    model.join = 'sum'\n    return model\n"
    )
    columns = breast_columns()
    origin = Origin(mark="0" * 32, run="1" * 32, rounds=2)
    scale = Standardisation.none([str(number) for number in range(1, 11)]).as_json()
    front, tail = columns.fronts["client-1"].state_dict(), columns.tail.state_dict()
    save_segment(here / "columns-tail", tail, role="tail", party="server", cut=CUT, origin=origin)
    facts = FrontFacts(columns=scale)
    save_segment(here / "columns-front", front, role="front", party="client-1", cut=CUT, origin=origin, front=facts)
    torch.manual_seed(9)
    other = breast_columns()
    save_segment(here / "other-tail", other.tail.state_dict(), role="tail", party="server", cut=CUT, origin=origin)
    other_front = other.fronts["client-1"].state_dict()
    save_segment(here / "other-front", other_front, role="front", party="client-1", cut=CUT, origin=origin, front=facts)
    torch.manual_seed(8)
    save_file(digits_half().state_dict(), here / "other-half")
    return here


def _run(config: Any, base: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What running a party with these settings does, without any other party."""
    log: list[str] = []
    predictions = Predictions(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 10), [1.0], [1.0], 1, 1, 1, 1)
    for name in ("Server", "Dealer", "Client", "HalvesClient"):
        monkeypatch.setattr(running, name, _Recorder(log, predictions))
    monkeypatch.setattr(running, "settle", lambda threads, cpu=None: log.append(f"settle {threads} {cpu}"))
    if hasattr(running, "save_segment"):
        monkeypatch.setattr(running, "save_segment", lambda path, *_a, **_n: log.append(f"saved {path}"))
    monkeypatch.setattr(running_columns, "ColumnsClient", _Recorder(log, predictions))
    monkeypatch.setattr(running_columns, "save_segment", lambda path, *_a, **_n: log.append(f"saved {path}"))
    for module in (running, running_columns):
        monkeypatch.setattr(module, "save_predictions", lambda _predictions, path: log.append(f"predictions in {path}"))
    check_settings(config)
    run = {DealerConfig: running.run_dealer, ServerConfig: running.run_server, ClientConfig: running.run_client}[
        type(config)
    ]
    run(config, base, lambda _event: None)  # type: ignore[operator]
    return log


def _other(layout: str, name: str) -> Any:
    """A value of the setting that suits the layout, where it acts there."""
    special = {
        ("server of columns", "model"): "net.py:Columns",
        ("client of columns", "data"): "other-columns.safetensors",
        ("client of parts", "model"): "net.py:Half",
        ("client of parts", "weights"): "other-half",
        ("server of columns", "weights"): "columns-tail",
        ("server of later columns", "weights"): "other-tail",
        ("server of later columns", "model"): "net.py:Columns",
        ("server of later columns", "epochs"): 5,
        ("client of later columns", "weights"): "other-front",
        ("client of later columns", "data"): "other-columns.safetensors",
        ("client of columns", "weights"): "columns-front",
        ("server of predictions", "epochs"): 5,
        ("server of a U", "cut"): "pool,fc1",
        ("client of a U", "cut"): "pool,fc1",
        ("client of predictions of a U", "cut"): "pool,fc1",
        ("server of predictions", "cut"): "relu2",
        ("server", "minimum"): 3,
    }
    return special.get((layout, name), OTHER[name])


# What must be set with it for a setting to be possible.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    **{(layout, "counts"): {"predictions_per_client": 5} for layout in LAYOUTS if layout.startswith("server")},
    ("server", "minimum"): {"clients": ("a", "b", "c")},
    ("server of a U", "minimum"): {"clients": ("a", "b", "c")},
    ("client", "train"): {"weights": "whole"},
    ("client of a U", "train"): {"weights": "whole"},
    ("client of predictions", "train"): {"seed": 0},
    ("client of parts", "model"): {"weights": None},
    ("client of parts", "seed"): {"weights": None},
    ("client of columns", "train"): {"weights": "columns-front"},
    ("client of later columns", "train"): {"seed": 0},
    ("server of later columns", "epochs"): {"seed": None},
}
# Changing these makes it another layout, which has a column of its own.
OF_THE_LAYOUT = {"layout"}
WALK = [
    (layout, field.name)
    for layout, config in LAYOUTS.items()
    for field in fields(config)
    if field.name not in OF_THE_LAYOUT
]


@pytest.mark.parametrize(("layout", "name"), WALK)
def test_every_setting_acts_or_is_refused_by_name(
    layout: str, name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in OTHER, "a new setting needs a decision: what it does in each layout, and another value here"
    config = replace(LAYOUTS[layout], **WITH.get((layout, name), {}))
    value = _other(layout, name)
    if value == getattr(config, name):
        value = True
    changed = replace(config, **{name: value})
    if name in idle_settings(config):
        with pytest.raises(ConfigError, match=rf"^{name} = .* does nothing at .*; leave it out$"):
            check_settings(changed)
        return
    if name == "cpu":
        # Where there is one processor there is no other value.
        assert _run(changed, directory, monkeypatch)[0] == "settle 1 0"
        return
    try:
        after = _run(changed, directory, monkeypatch)
    except SplitsecError as error:
        # It does not go with the others, such as a model with the weights of another.
        after = [str(error)]
    assert _run(config, directory, monkeypatch) != after, f"{name} is read and ignored"


def test_control_the_walk_sees_a_setting_that_is_ignored(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the walk compares is the same for settings that differ only where nobody looks."""
    one, other = _rows(), _rows(epochs=7, train_batch_size=5, learning_rate=0.5)
    monkeypatch.setattr("splitsec.settings.checks.IDLE_AT_CLIENT", {"horizontal": {}})
    assert _run(one, directory, monkeypatch) == _run(other, directory, monkeypatch)


def test_the_settings_without_what_is_idle_are_taken() -> None:
    crowded = _server(cut="", layout="model_parts", model="x", epochs=3, batch_size=8, decay=True, weights="w")
    with pytest.raises(ConfigError, match="does nothing"):
        check_settings(crowded)
    check_settings(without_idle(crowded))
    assert layout_of(crowded) == "model_parts"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_server(timeout=-1.0), "timeout = -1: write seconds above 0"),
        (_server(join_timeout=float("nan")), "join_timeout = nan: write a finite number"),
        (_server(round_timeout=float("inf")), "round_timeout = inf: write a finite"),
        (_server(batch_size=0), "batch_size = 0: write a whole number from 1 on"),
        (_server(seed=-3), "seed = -3"),
        (_server(seed=1 << 63), "seed = 9223372036854775808"),
        (_server(threads=0), "threads = 0: write a whole number from 1 to"),
        (_server(cpu=4096), "cpu = 4096: this process may use"),
        (_server(cpu=-1), "cpu = -1: write a whole number from 0 on"),
        (_server(epochs=-1), "epochs = -1"),
        (_server(minimum_clients=1), "minimum_clients = 1: write a whole number from 2 on"),
        (_server(clients=()), "clients is missing"),
        (_server(clients=("a", "a")), "clients names a twice"),
        (_server(clients=("a", "server")), "clients: a client cannot be called 'server'"),
        (_server(clients=("a", "Ward B")), "clients: 'Ward B' cannot name a party"),
        (_server(cut=""), "needs a cut"),
        (_server(predictions_per_client=0), "predictions_per_client = 0: write a whole number from 1 on"),
        (_server(counts="x"), 'counts = "x" does nothing without predictions_per_client'),
        (_server(cut="pool,fc2", answers="label"), 'answers = "label" needs a tail'),
        (_server(session_ports="40100-40000"), 'session_ports = "40100-40000": write the first and the last port'),
        (_server(session_ports="a-b"), 'session_ports = "a-b"'),
        (_server(session_ports="1-65536"), 'session_ports = "1-65536"'),
        (_server(session_ports=""), 'session_ports = ""'),
        (_server(model=""), "model is missing"),
        (_server(layout="vertical", held_out=1.0, cut=""), "held_out = 1: write a number of at least 0 and below 1"),
        (_server(dealer=SERVER), "address and dealer are both"),
        (DealerConfig(address=DEALER, minimum_clients=1), "minimum_clients = 1"),
        (_rows(predictions=-5), "predictions = -5"),
        (_rows(ahead=-1), "ahead = -1"),
        (_rows(batch_size=0), "batch_size = 0"),
        (_rows(name="server"), "name: a client cannot be called 'server'"),
        (_rows(name="../x"), "name: '../x' cannot name a party"),
        (_rows(model=""), "model is missing"),
        (_rows(data=""), "data is missing"),
        (_rows(server=DEALER), "server and dealer are both"),
        (_rows(cut="a,b,c"), "is no cut"),
        (_rows(layout="model_parts", cut="", batch_size=5), "predicts 1 or 32 images"),
        (_rows(layout="model_parts", cut="", epochs=0), "never trained"),
    ],
)
def test_settings_that_cannot_be(config: Any, message: str) -> None:
    with pytest.raises(SplitsecError, match=message.replace("(", r"\(")):
        check_settings(config)


def test_control_good_settings_pass() -> None:
    for config in LAYOUTS.values():
        check_settings(config)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:7855", "write tcp:// before it, such as tcp://127.0.0.1:7855"),
        ("", "write tcp:// before it"),
        ("http://x:1", "begins with http://"),
        ("ipc:///tmp/x", "begins with ipc://"),
        ("tcp://server", "is not tcp://HOST:PORT"),
        ("tcp://server:", "is not tcp://HOST:PORT"),
        ("tcp://:5555", "is not tcp://HOST:PORT"),
        ("tcp://server:55555555", "port '55555555', which cannot be; write a number from 1 to 65535"),
        ("tcp://server:0", "port '0'"),
        ("tcp://server:http", "port 'http'"),
        ("tcp://*:5555", "the host '\\*', which cannot be"),
        ("tcp://server:*", "port '\\*'"),
        ("tcp://-x:5555", "the host '-x'"),
        ("tcp://300.1.1.1:5555", "the host '300.1.1.1'"),
        ("tcp://10.0.1:5555", "the host '10.0.1'"),
        ("tcp://a b:5555", "is not tcp://HOST:PORT"),
        ("tcp://[::1]:5555", "IPv6, which is not supported"),
        ("tcp://server:5555/x", "port '5555/x'|is not tcp"),
    ],
)
def test_addresses_that_cannot_be(address: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        check_settings(_rows(server=address))


@pytest.mark.parametrize("address", ["tcp://*:5555", "tcp://0.0.0.0:*", "tcp://eth0:5", "tcp://a.example.:5555"])
def test_control_addresses_to_listen_on(address: str) -> None:
    check_settings(_server(address=address))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "there is no setting 'epoch'; did you mean epochs? There are: address, dealer, model, cut"),
        ("zzz = 3", "there is no setting 'zzz'; There are: address"),
        ('epochs = "3"', 'epochs wants a whole number, not the text "3"'),
        ("epochs = 3.5", "epochs wants a whole number, not the number 3.5"),
        ("epochs = true", "epochs wants a whole number, not true"),
        ('stay = "yes"', 'stay wants true or false, not the text "yes"'),
        ('aggregation = "mean"', "there is no rule of aggregation 'mean'; choose one of: average, relay, none"),
        ('clients = "a"', 'clients wants a list of texts, such as ["ward-a", "ward-b"], not the text "a"'),
        ("clients = [1, 2]", "clients wants a list of texts, such as"),
        ("out = 3", "out wants text in quotes, not the number 3"),
        ("privacy = 3", "privacy wants a table, such as {epsilon = 3.0}"),
        ("privacy = {epsilom = 3}", "there is no setting 'privacy.epsilom'; did you mean privacy.epsilon?"),
        ('privacy = {epsilon = "3"}', 'privacy.epsilon wants a number, not the text "3"'),
        ("seed = 1.5", "seed wants a whole number"),
        ("epochs = ", "is not TOML: "),
        ("timeout = -1", "timeout = -1: write seconds above 0"),
    ],
)
def test_a_file_that_is_wrong_names_the_setting_and_what_it_wants(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "server.toml"
    clients = "" if text.startswith("clients") else 'clients = ["a", "b"]\n'
    path.write_text(f'address = "{SERVER}"\ndealer = "{DEALER}"\nmodel = "m"\ncut = "pool"\n{clients}{text}\n')
    with pytest.raises(ConfigError) as caught:
        read_settings(path, ServerConfig)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "$" not in str(caught.value)


def test_what_is_missing_is_named_with_an_example(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('name = "a"\n')
    with pytest.raises(ConfigError, match="the setting 'server' is missing: server = \"tcp://server.example:5555\""):
        read_settings(path, ClientConfig)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        read_settings(path, ClientConfig)


def test_the_settings_of_a_run_are_the_servers() -> None:
    assert set(RunSettings.__dataclass_fields__) <= set(ServerConfig.__dataclass_fields__)
