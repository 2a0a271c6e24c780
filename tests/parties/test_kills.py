"""Processes of predictions that are killed or stopped at a random moment: no wrong result, and nobody left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from splitsec import SplitModel
from splitsec.local.prediction_service import Service, start_service
from splitsec.local.processes import PartyGroup
from splitsec.models.load import load_model

SOURCE, CUT = "splitsec.models:digits_cnn", "pool"
# What a client does until it is ended: it asks, and compares each answer with the model in plain.
ASKING = """
import sys, time, torch
from pathlib import Path
from splitsec import Client, Network, SplitModel, Timeouts
from splitsec.errors import SplitsecError
from splitsec.models.load import load_model
from splitsec.transport import load_key_pair, load_public_keys

directory, server, dealer, name, seconds = sys.argv[1:]
torch.manual_seed(0)
model = load_model("splitsec.models:digits_cnn").eval()
split = SplitModel(model, "pool").eval()
keys = Path(directory) / "keys"
images = torch.rand(40, 1, 8, 8)
with torch.no_grad():
    plain = model(images)
end, worst = time.monotonic() + float(seconds), 0.0
try:
    network = Network(keys=load_key_pair(keys, name), peers=load_public_keys(keys), server=server, dealer=dealer,
                      timeouts=Timeouts(timeout=10))
    with Client(split.front, cut=split.cut, network=network) as client:
        print("started", flush=True)
        while time.monotonic() < end:
            worst = max(worst, (client.predict(images).logits - plain).abs().max().item())
    print("ended", worst, flush=True)
except SplitsecError as error:
    print("refused", worst, type(error).__name__, error, flush=True)
"""


@dataclass
class Running:
    group: PartyGroup
    clients: list[subprocess.Popen[str]]

    @property
    def server(self) -> int:
        return self.group.pids["server"]

    def below(self) -> list[int]:
        """The server's forker, then its workers."""
        forker = _children(self.server)
        return forker + [worker for pid in forker for worker in _children(pid)]

    def everybody(self) -> set[int]:
        return {*self.group.pids.values(), *self.below()}


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def _running(directory: Path, *, clients: int, seconds: float, timeout: float) -> Iterator[Running]:
    torch.manual_seed(0)
    split = SplitModel(load_model(SOURCE).eval(), CUT).eval()
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(PartyGroup())
        service = Service(SOURCE, split.cut, split.tail)
        dealer, server = start_service(group, directory, service, ["client-1", "client-2"], timeout=timeout)
        processes = []
        for number in range(1, clients + 1):
            command = [sys.executable, "-c", ASKING, str(directory), server, dealer, f"client-{number}", str(seconds)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
        yield Running(group, processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "number"),
    [
        ("worker", signal.SIGKILL),
        ("worker", signal.SIGSTOP),
        ("forker", signal.SIGKILL),
        ("server", signal.SIGKILL),
        ("server", signal.SIGTERM),
        ("dealer", signal.SIGSTOP),
        ("client", signal.SIGKILL),
    ],
)
def test_whoever_is_ended_no_result_is_wrong_and_nobody_is_left(
    who: str, number: signal.Signals, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    with _running(tmp_path, clients=2, seconds=8, timeout=10) as running:
        _until(lambda: len(running.below()) > 1, 60)
        time.sleep(random.Random(seed).uniform(0, 2))
        _until(lambda: len(running.below()) > 1, 60)
        everybody, below = running.everybody(), running.below()
        victim = {
            "worker": below[-1],
            "forker": below[0],
            "server": running.server,
            "dealer": running.group.pids["dealer"],
            "client": running.clients[0].pid,
        }[who]
        os.kill(victim, number)
        ends = [process.communicate(timeout=90)[0].split() for process in running.clients]
        print(ends)
        if who == "client":
            assert ends.pop(0) == []
        assert all(end[0] in ("ended", "refused") and float(end[1]) < 1e-3 for end in ends)
        if who == "server":
            # Its workers go with it, before anybody cleans up.
            _until(lambda: not any(map(_alive, below)), 30)
        elif who != "dealer":
            # The others go on: control that ending the one has not ended all.
            assert _alive(running.server)
            assert _alive(running.group.pids["dealer"])
        everybody |= running.everybody()
    _until(lambda: not any(map(_alive, everybody)), 5)


@pytest.mark.slow
def test_a_worker_whose_client_died_in_a_query_is_gone_when_the_launcher_is(tmp_path: Path) -> None:
    with _running(tmp_path, clients=1, seconds=60, timeout=60) as running:
        _until(lambda: len(running.below()) > 1, 60)
        worker = running.below()[-1]
        # Stopped for a moment, so that the end of its client falls into a query.
        os.kill(worker, signal.SIGSTOP)
        running.clients[0].kill()
        running.clients[0].wait()
        os.kill(worker, signal.SIGCONT)
        # Control: it is still there, since it waits a moment whether its client connects again.
        assert _alive(worker)
        everybody = running.everybody()
    assert not [pid for pid in everybody if _alive(pid)]
