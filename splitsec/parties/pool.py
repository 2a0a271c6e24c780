"""A server's worker processes: one a prediction session, all forked from one `nursery`."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from splitsec import errors
from splitsec.errors import RefusedError, SplitsecError
from splitsec.parties.nursery import Bound, Ended, Failed, PoolBody, pool_codec, send_frames
from splitsec.parties.worker import Job

START_SECONDS = 60.0
MOST_BYTES = 1 << 16


class WorkerPool:
    """Starts workers and knows which are alive. Not for several threads at once."""

    def __init__(self) -> None:
        # The client and the slot of each open session.
        self._alive: dict[str, tuple[str, int]] = {}
        self._start_nursery()

    def _start_nursery(self) -> None:
        self._jobs, jobs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reports, reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = "import sys; from splitsec.parties.nursery import main; main(*map(int, sys.argv[1:]))"
        level = logging.getLogger("splitsec").getEffectiveLevel()
        command = [sys.executable, "-c", program, str(jobs.fileno()), str(reports.fileno()), str(level)]
        with jobs, reports:
            self._nursery = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(jobs.fileno(), reports.fileno()),
            )

    def start(self, job: Job, tensors: Sequence[torch.Tensor]) -> tuple[int, int]:
        """Start a worker for a session; returns the ports on which it listens, for the client and for contributions.

        Raises:
            AddressError: no port can be bound.
            RefusedError: no worker can be started.
        """
        if self._nursery.poll() is not None:
            # Its workers are told by the kernel when it dies, and end.
            self._close_sockets()
            self._alive.clear()
            self._start_nursery()
        self._alive[job.session] = job.client, self.free_slot()
        try:
            send_frames(self._jobs, pool_codec.encode(job, tensors))
            return self._wait_bound(job.session)
        except (OSError, SplitsecError) as error:
            self._alive.pop(job.session, None)
            if isinstance(error, SplitsecError):
                raise
            raise RefusedError("the server cannot start a worker; see its log") from error

    def free_slot(self) -> int:
        """The smallest number that no live worker has."""
        taken = {slot for _, slot in self._alive.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def alive(self) -> dict[str, str]:
        """Open sessions and their clients."""
        while self._receive(0) is not None:
            pass
        return {session: client for session, (client, _) in self._alive.items()}

    def close(self, patience: float) -> None:
        """Let running queries end, for at most `patience` seconds, then end every worker."""
        with contextlib.suppress(OSError):
            self._jobs.shutdown(socket.SHUT_WR)
        try:
            # With nobody to wait for, it need not even finish to start.
            self._nursery.wait(patience if self.alive() else 0)
        except subprocess.TimeoutExpired:
            self._nursery.kill()
            self._nursery.wait()
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._jobs.close()
        self._reports.close()

    def _wait_bound(self, session: str) -> tuple[int, int]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            match self._receive(max(0.01, deadline - time.monotonic())):
                case Bound(name, port, contributions) if name == session:
                    return port, contributions
                case Failed(name, error, reason) if name == session:
                    kind = getattr(errors, error, RefusedError)
                    raise kind(reason)
                case Ended(name) if name == session:
                    break
                case None if self._nursery.poll() is not None:
                    break
        raise RefusedError("the server's worker did not start; see its log")

    def _receive(self, timeout: float) -> PoolBody | None:
        """The next report, taken into account; None if there is none."""
        self._reports.settimeout(timeout)
        try:
            data = self._reports.recv(MOST_BYTES)
        except (BlockingIOError, TimeoutError):
            return None
        if not data:
            # Every other end is closed: the nursery is gone.
            return None
        body, _ = pool_codec.decode([data])
        if isinstance(body, (Ended, Failed)):
            self._alive.pop(body.session, None)
        return body
