"""The emulated slow link: how fast it is, and that it makes a sender wait."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.slow_link import QUEUE_BYTES, SlowLink


@contextmanager
def _ends(rtt_ms: float, mbit_s: float) -> Iterator[tuple[socket.socket, socket.socket]]:
    with SlowLink(rtt_ms, mbit_s) as link, socket.create_server(("127.0.0.1", 0)) as listener:
        address = link.to(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=30) as near:
            far, _ = listener.accept()
            with far:
                far.settimeout(30)
                yield near, far


def _read(end: socket.socket, count: int) -> None:
    while count:
        count -= len(end.recv(min(count, 1 << 16)))


def test_a_sender_waits_while_nobody_reads() -> None:
    """A relay that reads everything at once hides from the sender that the link is slow."""
    with _ends(5.0, 100.0) as (near, far):
        near.settimeout(0.5)
        sent, most = 0, 64 << 20
        try:
            while sent < most:
                sent += near.send(bytes(1 << 16))
        except TimeoutError:
            pass
        print(f"{sent / 1e6:.1f} MB until the sender waits")
        # The kernel's buffers of four sockets, and the relay's own.
        assert QUEUE_BYTES < sent < 24 << 20
        near.settimeout(30)
        _read(far, sent)
        near.sendall(b"again")
        _read(far, 5)


def test_time_on_the_link_is_at_least_that_of_its_bytes_and_its_delay() -> None:
    size = 1 << 20
    with _ends(40.0, 40.0) as (near, far):
        near.sendall(b"x")
        _read(far, 1)
        began = time.perf_counter()
        thread = threading.Thread(target=near.sendall, args=(bytes(size),))
        thread.start()
        _read(far, size)
        took = time.perf_counter() - began
        thread.join()
        assert took >= 0.02 + 8 * size / 40e6 - 0.015
