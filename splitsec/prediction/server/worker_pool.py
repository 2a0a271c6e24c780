"""A server's worker processes: one for each prediction session, all forked from one `worker_forker`."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import torch

from splitsec import errors
from splitsec.errors import RefusedError, SplitsecError
from splitsec.prediction.server.worker import Bound, Closed, Job, Spare
from splitsec.prediction.server.worker_forker import END_SECONDS, End, Ended, Failed, PoolBody, pool_codec, send_frames
from splitsec.transport.peer import WATCH_SECONDS

log = logging.getLogger(__name__)

# For a forker that loads its libraries, and for a worker of one that has done so.
START_SECONDS = 60.0
FORK_SECONDS = 10.0
MOST_BYTES = 1 << 16
# Of weights in the forker's memory, beyond those that the newest session needs.
STORED_BYTES = 1 << 30


@dataclass
class _Open:
    """A session whose worker's process lives.

    Attributes:
        client: the session's client.
        slot: the worker's number.
        spare: whether a newer session may take its place.
        over: whether the session is over already.
    """

    client: str
    slot: int
    spare: bool = False
    over: bool = False


class WorkerPool:
    """The workers of a server: starts them and knows which are alive. Not for several threads at once."""

    def __init__(self) -> None:
        self._alive: dict[str, _Open] = {}
        # The weights in the forker's memory, by digest, and their bytes; the longest unused first.
        self._stored: dict[str, int] = {}
        self._start_forker()

    def _start_forker(self) -> None:
        self._patience = START_SECONDS
        self._jobs, jobs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reports, reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = "import sys; from splitsec.prediction.server.worker_forker import main; main(*map(int, sys.argv[1:]))"
        level = logging.getLogger("splitsec").getEffectiveLevel()
        command = [sys.executable, "-c", program, str(jobs.fileno()), str(reports.fileno()), str(level)]
        with jobs, reports:
            self._forker = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(jobs.fileno(), reports.fileno()),
            )

    def start(self, job: Job, tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        """Start a worker for a session; return the ports on which it listens, for the client and for contributions.

        Args:
            tensors: those of the job by their digests; those that the forker has already are not sent again.

        Raises:
            AddressError: no port can be bound.
            RefusedError: no worker can be started.
        """
        self._revive()
        self._alive[job.session] = _Open(job.client, self.free_slot())
        try:
            self._jobs.settimeout(self._patience)
            sent, forget = self._stock(tensors)
            job = msgspec.structs.replace(job, sent=sent, forget=forget)
            send_frames(self._jobs, pool_codec.encode(job, {"weights": [tensors[name] for name in sent]}))
            return self._wait_bound(job.session)
        except (OSError, SplitsecError) as error:
            if job.session in self._alive:
                self._alive[job.session].over = True
            if isinstance(error, SplitsecError):
                raise
            # It may have read a part of the job, so that the next one would make no sense to it.
            log.error("the process that prediction sessions come from takes no job: %s", error)
            self._kill()
            raise RefusedError("the server cannot start a worker; see its log") from error

    def _stock(self, tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the digests of these weights that the forker lacks, and those that it may forget to make room."""
        missing = tuple(name for name in tensors if name not in self._stored)
        for name, tensor in tensors.items():
            self._stored.pop(name, None)
            self._stored[name] = tensor.numel() * tensor.element_size()
        forget = []
        while sum(self._stored.values()) > STORED_BYTES and next(iter(self._stored)) not in tensors:
            forget.append(next(iter(self._stored)))
            del self._stored[forget[-1]]
        return missing, tuple(forget)

    def free_slot(self) -> int:
        """Return the smallest number that no live worker has."""
        used = {opened.slot for opened in self._alive.values()}
        return next(number for number in range(len(used) + 1) if number not in used)

    def alive(self) -> dict[str, str]:
        """Return the open sessions and their clients."""
        self._take_reports()
        self._revive()
        return {session: opened.client for session, opened in self._alive.items() if not opened.over}

    def make_way(self, client: str) -> bool:
        """End the client's oldest session that a newer one may replace; False if all are in use."""
        for session, opened in self._alive.items():
            if opened.client == client and opened.spare and not opened.over:
                with contextlib.suppress(OSError):
                    send_frames(self._jobs, pool_codec.encode(End(session)))
                opened.over = True
                return True
        return False

    def close(self) -> None:
        """Let running queries end, for a few seconds at most, then end every worker."""
        with contextlib.suppress(OSError):
            self._jobs.shutdown(socket.SHUT_WR)
        try:
            # Without workers to wait for, it need not even finish its start.
            self._take_reports()
            self._forker.wait(END_SECONDS + 1 if self._alive else 0)
        except subprocess.TimeoutExpired:
            self._kill()
        self._close_sockets()

    def _kill(self) -> None:
        self._forker.kill()
        self._forker.wait()

    def _close_sockets(self) -> None:
        self._jobs.close()
        self._reports.close()

    def _revive(self) -> None:
        """Start a new forker in the place of one that died; the kernel tells its workers, which end."""
        if self._forker.poll() is not None:
            log.error("the process that prediction sessions come from was killed, and they with it; it is started anew")
            self._close_sockets()
            self._alive.clear()
            self._stored.clear()
            self._start_forker()

    def _take_reports(self) -> None:
        while self._receive(0) is not None:
            pass

    def _wait_bound(self, session: str) -> tuple[int, int]:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            match self._receive(WATCH_SECONDS):
                case Bound(name, port, contributions) if name == session:
                    self._patience = FORK_SECONDS
                    return port, contributions
                case Failed(name, error, reason) if name == session:
                    self._patience = FORK_SECONDS
                    kind = getattr(errors, error, RefusedError)
                    raise kind(reason)
                case Ended(name) if name == session:
                    break
                case None if self._forker.poll() is not None:
                    break
        else:
            log.error("the process that prediction sessions come from is silent for %g s", self._patience)
            self._kill()
        raise RefusedError("the server's worker did not start; see its log")

    def _receive(self, timeout: float) -> PoolBody | None:
        """Receive the next report and note what it says; None if there is none."""
        self._reports.settimeout(timeout)
        try:
            data = self._reports.recv(MOST_BYTES)
        except (BlockingIOError, TimeoutError):
            return None
        if not data:
            # Every other end is closed: the forker is gone.
            return None
        body, _ = pool_codec.decode([data])
        match body:
            case Spare(session, spare) if session in self._alive:
                self._alive[session].spare = spare
            case Closed(session, queries, seconds, reason, orderly):
                ending = f"closed after {queries} queries and {seconds:.1f} s: {reason}"
                self._over(session, ending, logging.INFO if orderly else logging.WARNING)
            case Failed(session, _, reason):
                self._over(session, f"did not begin: {reason}", logging.WARNING)
            case Ended(session) if session in self._alive:
                if not self._alive[session].over:
                    self._over(session, "ended: its worker was killed", logging.WARNING)
                del self._alive[session]
        return body

    def _over(self, session: str, how: str, level: int) -> None:
        opened = self._alive.get(session)
        if opened is not None:
            opened.over = True
        log.log(level, "session %s of %s %s", session[:8], "a client" if opened is None else opened.client, how)
