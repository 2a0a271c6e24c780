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
from splitsec.launch.local import LocalRun, prepare
from splitsec.parties.config import ClientConfig, DealerConfig, ServerConfig, read_config, write_config


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
        (["demo", "--minimum", "4"], 2, "must lie between 2 and the 3 clients"),
        (["demo", "--compress", "zip"], 2, "unknown compression 'zip'"),
        (["demo", "--drop", "0.1"], 2, "--drop needs --simulate"),
        (["demo", "--simulate", "--drop", "1"], 2, "at least 0 and below 1"),
        (["demo", "--simulate", "--topology", "halves"], 2, "nothing to simulate"),
        (["demo", "--simulate", "--predictions", "9"], 2, "--predictions does nothing with --simulate"),
        (["demo", "--topology", "halves", "--combine", "relay"], 2, "--combine does nothing in a halves run"),
        (["demo", "--topology", "halves", "--decay"], 2, "--decay does nothing in a halves run"),
        (["demo", "--topology", "vertical", "--every", "3"], 2, "--every does nothing in a vertical run"),
        (
            ["demo", "--topology", "vertical", "--partition", "shards:2"],
            2,
            "--partition does nothing in a vertical run",
        ),
        (["demo", "--combine", "relay", "--minimum", "3"], 2, "minimum = 3 does nothing with combine = 'relay'"),
        (["demo", "--data-dir", "/tmp"], 2, "--data-dir does nothing with digits"),
        (["demo", "--dp-clip", "2"], 2, "clip = 2 does nothing without a budget"),
        (["demo", "--dp-unit", "client"], 2, 'unit = "client" does nothing without a budget'),
        (["demo", "--topology", "u", "--cut", "pool"], 2, "a U has two cuts"),
        (["demo", "--topology", "vertical", "--dataset", "digits"], 2, "no dataset 'digits'; choose one of: breast"),
        (["demo", "--topology", "vertical", "--dataset", "credit"], 2, "--data-dir DIR"),
        (["demo", "--topology", "vertical", "--clients", "3"], 2, "those of two clients"),
        (["demo", "--topology", "vertical", "--cut", "pool"], 2, "leave --cut out"),
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
        "tcp://*:1", "tcp://x:2", 'm"od\N{GRINNING FACE}\x7fel\\', ("a", "b"), cut="cut", stay=True, learning_rate=1e-5
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
            server, dealer, run.model, tuple(run.names), cut=run.where, epochs=run.epochs, out="out"
        ),
    }
    for name in run.names:
        configs[name] = ClientConfig(
            name,
            server,
            dealer,
            run.model,
            "part.safetensors",
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


def test_parties_started_by_hand(tmp_path: Path) -> None:
    commands = _by_hand(tmp_path, LocalRun(clients=2, epochs=1), _free_ports(2))
    started = {
        name: subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible
        )
        for name, command in commands.items()
    }
    try:
        for name in ("client-1", "client-2", "server"):
            output, errors = started[name].communicate(timeout=250)
            assert started[name].returncode == 0, errors
            assert "done after" in output
        started["dealer"].send_signal(signal.SIGINT)
        assert started["dealer"].wait(100) == 130
        assert (tmp_path / "server" / "out" / "tail.safetensors").is_file()
        assert (tmp_path / "client-1" / "out" / "predictions.safetensors").is_file()
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_a_port_in_use_and_a_party_that_never_comes(tmp_path: Path) -> None:
    ports = _free_ports(2)
    run = LocalRun(clients=2, epochs=1)
    commands = _by_hand(tmp_path, run, ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        done = subprocess.run(commands["dealer"], capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 7
        assert f"dealer cannot listen on tcp://127.0.0.1:{ports[0]}: the port is in use" in done.stderr
        assert "Traceback" not in done.stderr
    path = tmp_path / "client-1" / "party.toml"
    path.write_text(path.read_text().replace("join_timeout = 120.0", "join_timeout = 1.0"))
    done = subprocess.run(commands["client-1"], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 6
    assert "server at tcp://127.0.0.1" in done.stderr
    assert "did not answer within 1 s" in done.stderr


def test_the_demo_end_to_end_with_two_clients(tmp_path: Path) -> None:
    target = tmp_path / "demo.json"
    done = _run("demo", "--clients", "2", "--epochs", "2", "--predictions", "20", "--json", str(target))
    assert done.returncode == 0, done.stderr
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
        assert text in done.stdout


@pytest.mark.slow
def test_a_demo_of_columns_end_to_end(tmp_path: Path) -> None:
    target = tmp_path / "demo.json"
    done = _run("demo", "--topology", "vertical", "--epochs", "10", "--json", str(target))
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert found["topology"] == "vertical"
    assert found["agreement"] == 1.0
    assert found["accuracy_encrypted"] > 0.9
    assert abs(found["auc"] - found["auc_joined"]) < 0.005
    assert found["samples_per_second"] > 0
    assert found["dropped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["u", "halves"])
def test_a_demo_of_other_layouts_end_to_end(layout: str, tmp_path: Path) -> None:
    target = tmp_path / "demo.json"
    done = _run("demo", "--topology", layout, "--epochs", "8", "--clients", "2", "--json", str(target))
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert (found["topology"], found["agreement"]) == (layout, 1.0)
    assert found["accuracy_encrypted"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["horizontal", "vertical"])
def test_killed_processes_go_on_from_their_checkpoints(topology: str, tmp_path: Path) -> None:
    """Every process is killed at some moment of the training; the second start ends like a run that was never."""
    arguments = ["--topology", topology, "--epochs", "60", "--clients", "2", "--predictions", "4"]
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
