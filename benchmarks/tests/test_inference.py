"""The benchmark as a user runs it: real processes, one table, records in a file."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import inference
from benchmarks.command import run_command
from benchmarks.engines.spu import SPU_PYTHON
from benchmarks.slow_link import SlowLink
from splitsec.models.literature import MODELS, find_model

FIELDS = (
    "engine provider model cut batch plaintext_ms online_ms offline_ms total_ms rounds bytes_online_client "
    "bytes_online_server bytes_offline max_abs_error agreement floor_ms layers"
)


@pytest.mark.slow
def test_a_model_of_the_users_own_against_its_floor(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))\n"
    )
    target = tmp_path / "records.json"
    command = [sys.executable, "-m", "benchmarks.inference", "--model", f"{tmp_path / 'mine.py'}:make"]
    done = subprocess.run(
        [*command, "--input", "1,8,8", "--batch", "2", "--runs", "3", "--json", str(target)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(target.read_text())["records"]
    assert set(FIELDS.split()) <= set(record)
    assert record["batch"] == 2
    assert record["max_abs_error"] < 1e-3
    assert record["agreement"] == 1.0
    assert record["total_ms"] >= record["online_ms"] > record["floor_ms"] / 2 > 0
    assert 0 < record["steady_ms"] < record["total_ms"] * 5
    # Exact counts a layer add up to the counters of the run.
    assert sum(layer["rounds"] for layer in record["layers"]) == record["rounds"]
    assert (
        sum(layer["bytes"] for layer in record["layers"])
        == record["bytes_online_client"] + record["bytes_online_server"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nope"], "unknown model 'nope'; choose one of m1"),
        (["--model", "x.py:y"], "say the shape of one input"),
        (["--batch", "0"], "whole numbers of at least 1"),
        (["--batch", "one"], "whole numbers of at least 1"),
        (
            ["--model", "m1", "--engine", "other"],
            "there is no engine 'other'; choose one of: ",
        ),
        (["--model", "m1", "--engine", "spu"], "engine spu needs an environment of its own"),
        (["--model", "m1", "--engine", "crypten", "--rtt", "5"], "only our own engines run over an emulated link"),
        (["--model", "m1", "--rtt", "-5"], "--rtt -5: write a number from 0 on"),
        (["--model", "m1", "--json", "/nowhere/x"], "cannot write"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SPU_PYTHON, raising=False)
    with pytest.raises(SystemExit) as exit_:
        run_command(inference.main, inference.Options, name="inference", description="", arguments=arguments)
    assert exit_.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


def test_an_emulated_link_delays_and_limits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, SlowLink(rtt_ms=40, mbit_s=8) as link:
        address = link.to(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        near = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        far, _ = listener.accept()
        with near, far:
            began = time.monotonic()
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            far.sendall(b"y")
            assert near.recv(1) == b"y"
            assert time.monotonic() - began > 0.035
            began = time.monotonic()
            near.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(far.recv(left))
            # 100 kB at 1 MB/s, and half a round trip.
            assert time.monotonic() - began > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_built_in_models_take_their_inputs(name: str) -> None:
    import torch

    known = find_model(name, None)
    with torch.no_grad():
        assert known.make()(torch.randn(2, *known.input_shape)).shape[0] == 2
