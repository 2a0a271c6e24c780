"""Scripts in `launch/`: their syntax, the commands that they call, and a whole run on this machine by hand."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.launch_files import LAUNCH, commands

from splitsec.cli import main

SCRIPTS = [LAUNCH / name for name in ("local.sh", "prepare.sh", "slurm/three_parties.sbatch")]
CALLING = [*SCRIPTS, LAUNCH / "README.md", *sorted((LAUNCH / "systemd").glob("*.service"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_a_script(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", CALLING, ids=lambda path: path.name)
def test_the_command_line_knows_every_command_and_option(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = commands(path)
    assert found
    monkeypatch.chdir(tmp_path)
    for number, (command, *words) in enumerate(found):
        # Paths become files that do not exist, so that a party ends at its first step; variables become names.
        without_paths = [str(tmp_path / f"{number}.toml") if "/" in word else word for word in words]
        with pytest.raises(SystemExit) as ended:
            main([command, *(re.sub(r"\$\w+|NAME", "party", word) for word in without_paths)])
        said = capsys.readouterr().err
        if command == "keys":
            assert not ended.value.code, said
        else:
            assert "cannot read" in said


def test_control_an_unknown_option_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["server", "--config", str(tmp_path / "server.toml"), "--port", "5555"])
    assert "cannot read" not in capsys.readouterr().err


def _environment(directory: Path) -> dict[str, str]:
    """An environment in which the scripts find this interpreter's `splitsec`."""
    command = directory / "bin" / "splitsec"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m splitsec "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join((str(command.parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}


def _shorten(homes: Path) -> None:
    """One epoch, few predictions, and ports that nothing else on this machine uses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    server, dealer = (str(free.getsockname()[1]) for free in sockets)
    for free in sockets:
        free.close()
    for path in homes.glob("*/*.toml"):
        text = path.read_text().replace(":5555", f":{server}").replace(":5556", f":{dealer}")
        text = text.replace("epochs = 30", "epochs = 1").replace('session_ports = "40000-40100"', "")
        path.write_text(text)


def _run_by_hand(layout: str, tmp_path: Path) -> tuple[Path, str]:
    """Prepare the parties' homes, run them by `local.sh`, and return the homes and what the parties said."""
    environment, homes = _environment(tmp_path), tmp_path / "homes"
    subprocess.run([LAUNCH / "prepare.sh", layout, homes], env=environment, check=True, timeout=100)
    _shorten(homes)
    command = [str(LAUNCH / "local.sh"), "by-hand", layout, str(homes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    logs = "".join(path.read_text() for path in homes.glob("*/log"))
    assert done.returncode == 0, done.stderr + logs
    return homes, done.stdout


def test_parties_started_by_hand(tmp_path: Path) -> None:
    homes, said = _run_by_hand("horizontal", tmp_path)
    for name in ("client-1", "client-2", "server"):
        assert re.search(rf"{name} is done after", said)
        assert sorted(path.name for path in (homes / name / "keys").glob("*_secret")) == [f"{name}.key_secret"]
    assert (homes / "server" / "out" / "tail.safetensors").is_file()
    assert (homes / "client-1" / "out" / "predictions.safetensors").is_file()
    # The dealer serves until it is told to end, and says so.
    assert "interrupted; everything that was started has been ended" in (homes / "dealer" / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["u", "relay", "private", "vertical", "model_parts"])
def test_every_layout_by_hand(layout: str, tmp_path: Path) -> None:
    homes, said = _run_by_hand(layout, tmp_path)
    assert said.count(" is done after") == 3
    assert (homes / "client-1" / "out" / "predictions.safetensors").is_file()


def test_a_call_without_a_layout_is_told_what_to_write() -> None:
    done = subprocess.run([LAUNCH / "local.sh", "by-hand"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "local.sh by-hand LAYOUT DIRECTORY" in done.stderr
