"""Other engines, each in processes of its own that run one prediction a line of standard input."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from splitsec.bench.workload import Record, Workload, plain_ms
from splitsec.cut import INPUT, SplitModel
from splitsec.errors import ConfigError, SplitsecError
from splitsec.mpc.compiler import compile_tail

SPU_PYTHON = "SPLITSEC_SPU_PYTHON"


class PeerProcesses:
    """The processes of one engine on one workload; a context manager that ends them.

    Args:
        commands: one process each; those that answer come first.
        answering: how many of them answer each line with `{"ms": ..., "error": ..., "agreement": ...}`.
        processors: where they may run.
        directory: what they read and write, removed in the end.
    """

    def __init__(
        self,
        work: Workload,
        commands: Sequence[Sequence[str]],
        *,
        engine: str,
        provider: str,
        environment: Mapping[str, str],
        answering: int,
        processors: set[int],
        threads: int,
        directory: Path | None = None,
    ) -> None:
        self._work = work
        self._directory = directory
        self._engine = engine
        self._provider = provider
        self._answering = answering
        self._threads = threads
        self.times: list[float] = []
        self._answers: list[dict[str, float]] = []
        self._processes = [
            subprocess.Popen(  # noqa: S603  (interpreters and modules that we name)
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=dict(environment),
            )
            for command in commands
        ]
        for process in self._processes:
            # This process is the client of ours and keeps to one processor; its children must not.
            os.sched_setaffinity(process.pid, processors)

    def run(self, *, count: bool) -> None:
        """One prediction; `count` is False for a warm-up."""
        asked = self._processes[: self._answering]
        try:
            for process in asked:
                assert process.stdin is not None
                process.stdin.write("run\n")
                process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answers = [self._answer(process) for process in asked]
        if count:
            self.times.append(max(answer["ms"] for answer in answers))
            self._answers += answers

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            # Libraries print lines of their own.
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise self._ended()

    def _ended(self) -> SplitsecError:
        return SplitsecError(f"{self._engine} ended while it ran {self._work.model.name}")

    def record(self) -> Record:
        """Medians of the counted runs."""
        online = statistics.median(self.times)
        return Record(
            engine=self._engine,
            provider=self._provider,
            model=self._work.model.name,
            cut=INPUT,
            batch=self._work.batch,
            runs=len(self.times),
            threads=self._threads,
            plaintext_ms=plain_ms(self._work.model.make(self._work.weights), self._work.inputs()),
            online_ms=online,
            total_ms=online,
            max_abs_error=max(answer["error"] for answer in self._answers),
            agreement=min(answer["agreement"] for answer in self._answers),
        )

    def __enter__(self) -> PeerProcesses:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def stock_crypten(work: Workload, processors: set[int], *, threads: int | None, engine: str) -> PeerProcesses:
    """Two parties and the trusted third party of stock CrypTen; see `crypten_peer`.

    Args:
        threads: of each process; None leaves CrypTen as it comes, with torch's default.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-W", "ignore", "-m", "splitsec.bench.crypten_peer"]
    port = str(_free_port())
    return PeerProcesses(
        work,
        [[*command, str(rank), port, work.model.name, str(work.batch)] for rank in range(3)],
        engine=engine,
        provider="TTP",
        environment=environment if threads is None else {**environment, "OMP_NUM_THREADS": str(threads)},
        answering=2,
        processors=processors,
        threads=threads or 0,
    )


def spu_at_its_best(work: Workload, processors: set[int]) -> PeerProcesses:
    """SPU with the number of threads, of 1, 2 and its default, that is fastest in a few runs; see `spu_peer`.

    Raises:
        ConfigError: the environment variable that names the Python with SPU is not set.
    """
    python = os.environ.get(SPU_PYTHON)
    if not python or not Path(python).exists():
        raise ConfigError(
            f"engine spu needs an environment of its own: make one with Python 3.11 and 'pip install "
            f"spu==0.10.0.dev20251211', and set {SPU_PYTHON} to its python"
        )
    tried = {}
    for threads in (None, 1, 2):
        with _spu(work, processors, python, threads) as peer:
            for _ in range(3):
                peer.run(count=False)
            for _ in range(5):
                peer.run(count=True)
            tried[threads] = statistics.median(peer.times)
    return _spu(work, processors, python, min(tried, key=tried.__getitem__))


def _spu(work: Workload, processors: set[int], python: str, threads: int | None) -> PeerProcesses:
    directory = Path(tempfile.mkdtemp(prefix="splitsec-spu-"))
    split = SplitModel(work.model.make(work.weights), INPUT).eval()
    x = work.inputs()
    program, weights = compile_tail(split.tail, tuple(x.shape), calibration=x)
    (directory / "steps.json").write_bytes(msgspec.json.encode(program.steps))
    with torch.no_grad():
        expected = split(x)
    arrays = {f"{number}_w": one.weight.float().numpy() for number, one in weights.items()}
    arrays |= {f"{number}_b": one.bias.float().numpy() for number, one in weights.items()}
    np.savez(directory / "arrays.npz", x=x.numpy(), expected=expected.numpy(), **arrays)  # type: ignore[arg-type]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    script = str(Path(__file__).with_name("spu_peer.py"))
    port = str(_free_port())
    return PeerProcesses(
        work,
        [[python, script, str(rank), port, str(directory)] for rank in range(2)],
        engine="spu",
        provider="semi2k",
        environment=environment if threads is None else {**environment, "OMP_NUM_THREADS": str(threads)},
        answering=2,
        processors=processors,
        threads=threads or 0,
        directory=directory,
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
