"""The forker: the process that loads the libraries once and forks a server's workers, one for each session.

A fresh process for each session keeps sessions apart, in memory and in time; forking it from a process without threads
takes milliseconds where starting one takes seconds. Only `worker_pool` starts it, with two inherited sockets.

No process outlives the one that it works for: workers end when the forker dies, by whatever signal, and the forker when
the server's end of its socket closes. Workers that still run then have END_SECONDS.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from splitsec.errors import SplitsecError
from splitsec.machine import settle
from splitsec.mpc.program.program import Weights
from splitsec.mpc.protocols.linear import laid_out
from splitsec.prediction.server.session_end import QUERY_SECONDS, TELL_SECONDS, Ending
from splitsec.prediction.server.worker import Bound, Closed, Job, Spare, serve_session
from splitsec.transport import Codec, Message

_LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1
# For all workers together; those that are left then are killed.
END_SECONDS = QUERY_SECONDS + 2 * TELL_SECONDS


class End(Message, frozen=True):
    """Server to forker: the session is to make way for a newer one of its client."""

    session: str


class Failed(Message, frozen=True):
    """Worker to server: the session could not begin."""

    session: str
    error: str
    reason: str


class Ended(Message, frozen=True):
    """Forker to server: the session's worker is gone."""

    session: str


PoolBody: TypeAlias = Job | End | Bound | Spare | Closed | Failed | Ended
pool_codec: Codec[PoolBody] = Codec(PoolBody, header_bytes=1 << 26)


def send_frames(stream: socket.socket, frames: Sequence[Any]) -> None:
    """Send frames over a byte stream: their number, then each with its length."""
    stream.sendall(_LENGTH.pack(len(frames)))
    for frame in frames:
        stream.sendall(_LENGTH.pack(len(frame)))
        stream.sendall(frame)


def receive_frames(stream: socket.socket) -> list[bytes]:
    """Receive the frames that `send_frames` sent; none at the end of the stream."""
    try:
        (count,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        return [_exactly(stream, *_LENGTH.unpack(_exactly(stream, _LENGTH.size))) for _ in range(count)]
    except EOFError:
        return []


def _exactly(stream: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        got = stream.recv_into(view[at:])
        if not got:
            raise EOFError
        at += got
    return bytes(data)


class _Forker:
    """State of the forker: its workers, and the weights that they find in its memory."""

    def __init__(self, jobs: socket.socket, reports: socket.socket) -> None:
        self._jobs = jobs
        self._reports = reports
        self._children: dict[int, str] = {}
        self._stored: dict[str, torch.Tensor] = {}
        self._stopped = False
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # To the whole process group, or to the forker alone: either way its workers are to end first.
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> None:
        """Fork a worker a job until the server closes its end or SIGTERM comes; then end the workers."""
        while not self._stopped:
            ready, _, _ = select.select([self._jobs.fileno(), self._wake], [], [])
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if self._jobs.fileno() not in ready:
                continue
            frames = receive_frames(self._jobs)
            if not frames:
                break
            body, tensors = pool_codec.decode(frames)
            match body:
                case Job():
                    self._fork(body, tensors["weights"])
                case End(session):
                    self._signal(signal.SIGUSR1, {pid for pid, name in self._children.items() if name == session})
            # The next worker inherits what is still here.
            del frames, body, tensors
        self._end()

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _fork(self, job: Job, weights: list[torch.Tensor]) -> None:
        for name in job.forget:
            self._stored.pop(name, None)
        # Laid out here, once, for all workers to come: they share the memory.
        self._stored |= {name: laid_out(tensor.clone()) for name, tensor in zip(job.sent, weights, strict=True)}
        parent = os.getpid()
        # A worker's signals wait until it has handlers of its own.
        mask = {signal.SIGTERM, signal.SIGUSR1}
        signal.pthread_sigmask(signal.SIG_BLOCK, mask)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (self._jobs.fileno(), self._wake, self._waker):
                os.close(number)
            try:
                self._work(job, parent)
            finally:
                logging.shutdown()
                os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, mask)
        self._children[pid] = job.session

    def _work(self, job: Job, parent: int) -> None:
        """Live as a worker; Ctrl-C is for the server to handle."""
        ending = Ending()
        ending.listen()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            # The forker died before the kernel was asked to signal its death.
            return
        weights = {
            layer: Weights(self._stored[weight], self._stored[bias])
            for layer, weight, bias in zip(job.layers, job.digests[::2], job.digests[1::2], strict=True)
        }
        try:
            serve_session(job, weights, self._report, ending)
        except SplitsecError as error:
            self._report(Failed(job.session, type(error).__name__, str(error)))

    def _report(self, body: PoolBody) -> None:
        with contextlib.suppress(OSError):
            self._reports.send(pool_codec.encode(body)[0])

    def _reap(self) -> None:
        for pid in list(self._children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._report(Ended(self._children.pop(pid)))

    def _signal(self, number: int, pids: set[int]) -> None:
        # Of children that are not reaped yet, so that the numbers are theirs.
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end(self) -> None:
        self._signal(signal.SIGTERM, set(self._children))
        deadline = time.monotonic() + END_SECONDS
        while self._children and time.monotonic() < deadline:
            select.select([self._wake], [], [], 0.1)
            self._reap()
        self._signal(signal.SIGKILL, set(self._children))
        for pid in self._children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def main(jobs_fd: int, reports_fd: int, level: int = logging.WARNING) -> None:
    """Be the forker of the server that holds the other ends of these sockets; workers log from `level` on."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("splitsec").setLevel(level)
    settle(threads=1)
    _Forker(socket.socket(fileno=jobs_fd), socket.socket(fileno=reports_fd)).run()
