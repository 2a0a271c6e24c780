"""Other engines, each in processes of its own that run one prediction a line of standard input."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splitsec.apps.workload import Record, Workload, plain_ms
from splitsec.cut import INPUT
from splitsec.errors import SplitsecError

PARTIES = 2


class PeerProcesses:
    """The processes of one engine on one workload; a context manager that ends them.

    Args:
        commands: one process each. The first two, the parties, answer each line with
            `{"ms": ..., "error": ..., "agreement": ...}`.
        environment: of the processes; `OMP_NUM_THREADS` says how many threads they use.
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
        processors: set[int],
        directory: Path | None = None,
    ) -> None:
        self._work = work
        self._directory = directory
        self._engine = engine
        self._provider = provider
        self._threads = int(environment.get("OMP_NUM_THREADS", 0))
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
        asked = self._processes[:PARTIES]
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


def free_port() -> int:
    """Return a port of the loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
