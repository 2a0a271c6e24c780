"""The command line as a user meets it: real processes, one clear line for each error."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from splitsec.cli import main
from splitsec.local.run import LocalRun, prepare
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.toml import read_config, write_config


def _here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command in this process, where torch is loaded already; its exit code and what it wrote to stderr."""
    try:
        main(list(arguments))
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


def _run(*arguments: str, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splitsec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def _interruptible() -> None:
    # What runs in the background of a script inherits an ignored SIGINT, and would pass it on to what the tests start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _parties_of(directory: Path) -> list[str]:
    """Command lines of living processes that mention `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(directory) in line and "splitsec" in line:
                found.append(line)
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["demo", "--cut", "nope"], 2, "there is no cut 'nope'; the valid cuts are: conv1, relu1"),
        (["demo", "--cut", "input"], 2, "inputs in plain; choose a later cut"),
        (["demo", "--clients", "1"], 2, "at least two clients"),
        (["demo", "--epochs", "0"], 2, "at least one epoch"),
        (["demo", "--dataset", "mnist"], 2, "--data-dir DIR"),
        (["demo", "--dataset", "mnist", "--data-dir", "/nowhere"], 2, "no MNIST in /nowhere"),
        (["demo", "--clients", "2000"], 2, "cannot be dealt to 2000 clients"),
        (["demo", "--predictions", "1"], 2, "fewer than the 3 clients"),
        (["demo", "--json", "/nowhere/x.json"], 2, "cannot write /nowhere/x.json"),
        (["demo", "--partition", "rows"], 2, "unknown partition 'rows'; choose one of: iid"),
        (["demo", "--minimum-clients", "4"], 2, "must lie between 2 and the 3 clients"),
        (["demo", "--compression", "zip"], 2, "unknown compression 'zip'"),
        (["demo", "--drop", "0.1"], 2, "--drop needs --simulate"),
        (["demo", "--simulate", "--drop", "1"], 2, "at least 0 and below 1"),
        (["demo", "--simulate", "--layout", "model_parts"], 2, "nothing to simulate"),
        (["demo", "--simulate", "--predictions", "9"], 2, "--predictions does nothing with --simulate"),
        (
            ["demo", "--layout", "model_parts", "--aggregation", "relay"],
            2,
            "--aggregation does nothing in a model_parts run",
        ),
        (["demo", "--layout", "model_parts", "--decay"], 2, "--decay does nothing in a model_parts run"),
        (
            ["demo", "--layout", "vertical", "--steps-per-round", "3"],
            2,
            "--steps-per-round does nothing in a vertical run",
        ),
        (
            ["demo", "--layout", "vertical", "--partition", "shards:2"],
            2,
            "--partition does nothing in a vertical run",
        ),
        (
            ["demo", "--aggregation", "relay", "--minimum-clients", "3"],
            2,
            "minimum_clients = 3 does nothing with aggregation = 'relay'",
        ),
        (["demo", "--data-dir", "/tmp"], 2, "--data-dir does nothing with digits"),
        (["demo", "--privacy.clip", "2"], 2, "clip = 2 does nothing without a budget"),
        (["demo", "--privacy.unit", "client"], 2, 'unit = "client" does nothing without a budget'),
        (["demo", "--layout", "u", "--cut", "pool"], 2, "a U has two cuts"),
        (["demo", "--layout", "vertical", "--dataset", "digits"], 2, "no dataset 'digits'; choose one of: breast"),
        (["demo", "--layout", "vertical", "--dataset", "credit"], 2, "--data-dir DIR"),
        (["demo", "--layout", "vertical", "--clients", "3"], 2, "those of two clients"),
        (["demo", "--layout", "vertical", "--cut", "pool"], 2, "leave --cut out"),
        (["server", "--config", "/nowhere.toml"], 2, "cannot read /nowhere.toml"),
        (["keys", "--out", "/tmp", "../evil"], 2, "cannot name a party"),
        (["keys", "--out", "/dev/null", "a"], 2, "cannot write keys to /dev/null: it is a file"),
        (["demo", "--json", "/tmp"], 2, "cannot write /tmp: it is a directory"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == code
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_trace_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" not in _here(capsys, "demo", "--cut", "nope")[1]
    assert "Traceback" in _here(capsys, "demo", "--cut", "nope", "--verbose")[1]


def test_a_setting_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dealer.toml").write_text('address = "tcp://127.0.0.1:*"\nadress = 1\n')
    code, said = _here(capsys, "dealer", "--config", str(tmp_path / "dealer.toml"))
    assert code == 2
    assert "there is no setting 'adress'; did you mean address?" in said


def test_keys_and_configs_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("keys", "--out", str(tmp_path / "k"), "server")
    code, _ = _here(capsys, *keys, "client-1", "--json", str(tmp_path / "k.json"))
    assert code == 0
    assert set(json.loads((tmp_path / "k.json").read_text())) == {"server", "client-1"}
    assert "exists" in _here(capsys, *keys)[1]
    config = ServerConfig(
        address="tcp://*:1",
        dealer="tcp://x:2",
        model='m"od\N{GRINNING FACE}\x7fel\\',
        clients=("a", "b"),
        cut="cut",
        stay=True,
        learning_rate=1e-5,
    )
    write_config(tmp_path / "s.toml", config)
    assert read_config(tmp_path / "s.toml", ServerConfig) == config


def _by_hand(directory: Path, run: LocalRun, ports: list[int]) -> dict[str, list[str]]:
    """TOML files as a user writes them; returns each party's command."""
    prepare(run, directory)
    dealer, server = (f"tcp://127.0.0.1:{port}" for port in ports)
    configs: dict[str, DealerConfig | ServerConfig | ClientConfig] = {
        "dealer": DealerConfig(address=dealer),
        "server": ServerConfig(
            address=server,
            dealer=dealer,
            model=run.model,
            clients=tuple(run.names),
            cut=run.where,
            epochs=run.epochs,
            out="out",
        ),
    }
    for name in run.names:
        configs[name] = ClientConfig(
            name=name,
            server=server,
            dealer=dealer,
            model=run.model,
            data="part.safetensors",
            cut=run.where,
            predictions=3,
            out="out",
            timeout=60,
        )
    for name, config in configs.items():
        write_config(directory / name / "party.toml", config)
    return {
        name: [sys.executable, "-m", "splitsec", name.split("-")[0], "--config", str(directory / name / "party.toml")]
        for name in configs
    }


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_a_port_in_use_and_a_party_that_never_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ports = _free_ports(2)
    run = LocalRun(clients=2, epochs=1)
    commands = _by_hand(tmp_path, run, ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        code, said = _here(capsys, *commands["dealer"][3:])
        assert code == 7
        assert f"dealer cannot listen on tcp://127.0.0.1:{ports[0]}: the port is in use" in said
        assert "Traceback" not in said
    path = tmp_path / "client-1" / "party.toml"
    path.write_text(path.read_text() + "join_timeout = 1.0\n")
    code, said = _here(capsys, *commands["client-1"][3:])
    assert code == 6
    assert "server at tcp://127.0.0.1" in said
    assert "did not answer within 1 s" in said


def test_the_demo_end_to_end_with_two_clients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "demo.json"
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--clients", "2", "--epochs", "2", "--predictions", "20", "--json", str(target)])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    found = json.loads(target.read_text())
    wanted = (
        "clients dataset epochs cut accuracy_plain accuracy_encrypted agreement max_abs_error encrypted_predictions "
        "plain_ms_median online_ms_median offline_ms_median rounds bytes_online seconds"
    )
    assert set(wanted.split()) <= set(found)
    assert found["encrypted_predictions"] == 20
    assert found["agreement"] == 1.0
    assert 0 < found["max_abs_error"] < 1e-2
    assert found["accuracy_encrypted"] > 0.3
    for text in ("who saw what", "test accuracy", "rounds per prediction", "client-2", "server"):
        assert text in said.out


@pytest.mark.slow
def test_a_demo_of_columns_end_to_end(tmp_path: Path) -> None:
    target = tmp_path / "demo.json"
    done = _run("demo", "--layout", "vertical", "--epochs", "10", "--json", str(target))
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert found["layout"] == "vertical"
    assert found["agreement"] == 1.0
    assert found["accuracy_encrypted"] > 0.9
    assert abs(found["auc"] - found["auc_joined"]) < 0.005
    assert found["samples_per_second"] > 0
    assert found["dropped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["u", "model_parts"])
def test_a_demo_of_other_layouts_end_to_end(layout: str, tmp_path: Path) -> None:
    target = tmp_path / "demo.json"
    done = _run("demo", "--layout", layout, "--epochs", "8", "--clients", "2", "--json", str(target))
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert (found["layout"], found["agreement"]) == (layout, 1.0)
    assert found["accuracy_encrypted"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["horizontal", "vertical"])
def test_killed_processes_go_on_from_their_checkpoints(layout: str, tmp_path: Path) -> None:
    """Every process is killed at some moment of the training; the second start ends like a run that was never."""
    arguments = ["--layout", layout, "--epochs", "60", "--clients", "2", "--predictions", "4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _run("demo", *arguments, "--checkpoints", str(whole)).returncode == 0
    command = [sys.executable, "-m", "splitsec", "demo", *arguments, "--checkpoints", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = killed / "server" / "checkpoints" / "round-000007.json"
    deadline = time.monotonic() + 60
    while not wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and str(killed).encode() in _cmdline(entry) and int(entry.name) != process.pid:
            os.kill(int(entry.name), signal.SIGKILL)
    process.wait(30)
    left = sorted(path.name for path in (killed / "server" / "checkpoints").glob("*.json"))
    assert left[-1] < "round-000060.json", "the run was over before it was killed"
    done = _run("demo", *arguments, "--checkpoints", str(killed))
    assert done.returncode == 0, done.stderr
    for name in ("server/out/tail.safetensors", "client-1/out/front.safetensors"):
        # Beside the weights the files have the run that made them, which is another.
        first, second = load_file(whole / name), load_file(killed / name)
        assert all(torch.equal(first[key], second[key]) for key in first | second)
    other = _run("demo", *arguments[:-1], "5", "--seed", "1", "--checkpoints", str(killed))
    assert other.returncode == 2
    assert "holds another run: seed is 0 there and 1 here" in other.stderr
    longer = [*arguments[:3], "62", *arguments[4:]]
    assert _run("demo", *longer, "--checkpoints", str(killed)).returncode == 0
    assert (killed / "server" / "checkpoints" / "round-000062.json").exists()


def _start_demo(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "splitsec", "demo", "--clients", "2", "--epochs", "500"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_interruptible,
    )
    deadline = time.monotonic() + 200
    while len(_parties_of(tmp_path)) < 4 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    assert len(_parties_of(tmp_path)) == 4
    time.sleep(2)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_no_process_survives_an_interrupted_demo(tmp_path: Path, number: signal.Signals) -> None:
    process = _start_demo(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    deadline = time.monotonic() + 100
    while _parties_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _parties_of(tmp_path) == []
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted" in errors
        assert "Traceback" not in errors
        assert list(tmp_path.glob("splitsec-*")) == []


def test_a_party_that_dies_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    process = _start_demo(tmp_path)
    victim = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and b"client-2/party.toml" in _cmdline(entry)
        and str(tmp_path).encode() in _cmdline(entry)
    )
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "client-2 ended with exit code -9" in errors
    assert _parties_of(tmp_path) == []


def _cmdline(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
