"""The process that a server's workers come from: it loads the libraries once and forks a worker a session.

A fresh process each session keeps sessions apart, in memory and in time; forking it from a process without threads
takes milliseconds where starting one takes seconds. Only `pool` starts it, with two inherited sockets.
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
import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from splitsec.errors import SplitsecError
from splitsec.parties.machine import settle
from splitsec.parties.worker import Job, serve_session
from splitsec.transport import Codec, Message

_LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1


class Bound(Message, frozen=True):
    """Worker to server: the session's socket listens on this port, that for contributions on the other (or 0)."""

    session: str
    port: int
    contributions: int


class Failed(Message, frozen=True):
    """Worker to server: the session could not begin."""

    session: str
    error: str
    reason: str


class Ended(Message, frozen=True):
    """Nursery to server: the session's worker is gone."""

    session: str


PoolBody: TypeAlias = Job | Bound | Failed | Ended
pool_codec: Codec[PoolBody] = Codec(PoolBody, header_bytes=1 << 26)


def send_frames(stream: socket.socket, frames: Sequence[Any]) -> None:
    """Frames over a byte stream: their number, then each with its length."""
    stream.sendall(_LENGTH.pack(len(frames)))
    for frame in frames:
        stream.sendall(_LENGTH.pack(len(frame)))
        stream.sendall(frame)


def receive_frames(stream: socket.socket) -> list[bytes]:
    """What `send_frames` sent; empty at the end of the stream."""
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


def _report(reports: socket.socket, body: PoolBody) -> None:
    with contextlib.suppress(OSError):
        reports.send(pool_codec.encode(body)[0])


def _work(job: Job, tensors: list[torch.Tensor], reports: socket.socket) -> None:
    """The life of a worker: SIGTERM lets it finish its query, Ctrl-C is for the server to handle."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        serve_session(job, tensors, lambda *ports: _report(reports, Bound(job.session, *ports)), stop)
    except SplitsecError as error:
        _report(reports, Failed(job.session, type(error).__name__, str(error)))


def _reap(children: dict[int, str], reports: socket.socket) -> None:
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            _report(reports, Ended(children.pop(pid)))


def main(jobs_fd: int, reports_fd: int, level: int = logging.WARNING) -> None:
    """Fork a worker a job until the server closes its end; then let the workers finish. They log from `level` on."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("splitsec").setLevel(level)
    settle(threads=1)
    jobs, reports = socket.socket(fileno=jobs_fd), socket.socket(fileno=reports_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, str] = {}
    while True:
        ready, _, _ = select.select([jobs.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap(children, reports)
        if jobs.fileno() not in ready:
            continue
        frames = receive_frames(jobs)
        if not frames:
            break
        job, tensors = pool_codec.decode(frames)
        assert isinstance(job, Job)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (jobs.fileno(), wake, waker):
                os.close(number)
            try:
                _work(job, tensors, reports)
            finally:
                logging.shutdown()
                os._exit(0)
        children[pid] = job.session
        # The next worker inherits what is still here.
        del frames, job, tensors
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
