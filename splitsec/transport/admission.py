"""A limit to the connections that have not shown a key yet.

Until a peer has shown its key it may hold a descriptor and up to one frame of memory, so a bound socket keeps at most
`MOST_UNKNOWN` such connections, and closes the oldest for a newer one. ZeroMQ says which descriptor it has accepted and
not whose handshake has succeeded; that is read from the kernel: before its end of the handshake a CURVE server sends at
most its greeting (64 bytes), WELCOME (170) and a refusal, and afterwards READY as well (RFC 26/CURVEZMQ).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading

import zmq
from zmq.utils.monitor import recv_monitor_message

log = logging.getLogger(__name__)
MOST_UNKNOWN = 64
HANDSHAKE_SECONDS = 10
_BEFORE_READY = 270
# In Linux's `struct tcp_info`, which later fields are appended to: tcpi_bytes_acked, what the peer has received.
_ACKED = struct.Struct("<Q")
_ACKED_AT = 120


class Admission:
    """Watches one bound socket from a thread of its own; `stop` it before the socket is closed elsewhere."""

    def __init__(self, bound: zmq.Socket[bytes], *, owner: str, most: int = MOST_UNKNOWN) -> None:
        self._owner = owner
        self._most = most
        self._bound = bound
        # Descriptors that have not shown a key, oldest first, with the inode by which one that is reused is told apart.
        self._unknown: dict[int, int] = {}
        self._told = 0
        monitor = bound.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_MONITOR_STOPPED)
        monitor.setsockopt(zmq.RCVTIMEO, 1000)
        self._thread = threading.Thread(target=self._watch, args=(monitor,), name="admission", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer; for the thread that uses the bound socket."""
        if not self._bound.closed:
            with contextlib.suppress(zmq.ZMQError):
                self._bound.disable_monitor()
        self._thread.join(5)

    def _watch(self, monitor: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.ZMQError):
            while True:
                try:
                    event = recv_monitor_message(monitor)
                except zmq.Again:
                    continue
                if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                    break
                self._accepted(int(event["value"]))
        with contextlib.suppress(zmq.ZMQError):
            monitor.close(0)

    def _accepted(self, descriptor: int) -> None:
        self._unknown.pop(descriptor, None)
        with contextlib.suppress(OSError):
            self._unknown[descriptor] = os.fstat(descriptor).st_ino
        if len(self._unknown) <= self._most:
            return
        self._unknown = {
            descriptor: inode for descriptor, inode in self._unknown.items() if not _known(descriptor, inode)
        }
        while len(self._unknown) > self._most:
            oldest = next(iter(self._unknown))
            _shut(oldest, self._unknown.pop(oldest))
            self._told += 1
            # A line for each would let a stranger fill the disk.
            if self._told & (self._told - 1) == 0:
                log.warning(
                    "%s closed %d connections that had shown no key while more than %d were open",
                    self._owner,
                    self._told,
                    self._most,
                )


def _known(descriptor: int, inode: int) -> bool:
    """Return whether a connection has shown its key or is gone; true also where the kernel does not say."""
    try:
        if os.fstat(descriptor).st_ino != inode:
            return True
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return True
    return len(info) < _ACKED_AT + _ACKED.size or _ACKED.unpack_from(info, _ACKED_AT)[0] > _BEFORE_READY


def _shut(descriptor: int, inode: int) -> None:
    """End a connection whose descriptor is ZeroMQ's: it notices and closes it."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if os.fstat(connection.fileno()).st_ino == inode:
            connection.shutdown(socket.SHUT_RDWR)
