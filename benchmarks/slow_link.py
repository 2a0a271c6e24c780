"""A slow link, emulated: a relay that delays what passes and limits how fast it goes.

It takes no more than a link and the router before it hold: then it stops reading, and whoever sends has to wait.

Run as `python -m benchmarks.slow_link RTT_MS MBIT_S`; for each `host:port` on standard input it prints the port of
127.0.0.1 that leads there. In a process of its own, so that it takes no time from the parties.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 14
# What a router in front of the link holds, beyond what is on its way.
QUEUE_BYTES = 1 << 18
_LATE_SECONDS = 0.01


class SlowLink:
    """The relay's process; a context manager.

    Args:
        rtt_ms: round trip time that it adds, milliseconds.
        mbit_s: what passes each way, megabits a second.
    """

    def __init__(self, rtt_ms: float, mbit_s: float) -> None:
        command = [sys.executable, "-m", "benchmarks.slow_link", str(rtt_ms), str(mbit_s)]
        self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()

    def to(self, address: str) -> str:
        """Return the address that leads to `address` (`tcp://host:port`) over the slow link."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(urlsplit(address).netloc + "\n")
            self._process.stdin.flush()
            return f"tcp://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> SlowLink:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait()


def _pass_on(source: socket.socket, target: socket.socket, delay: float, bytes_s: float) -> None:
    """Everything that comes from `source` goes to `target` after its time on the line and the delay."""
    chunks = max(2, int((QUEUE_BYTES + 2 * delay * bytes_s) / CHUNK_BYTES))
    waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(chunks)

    def deliver() -> None:
        while True:
            due, data = waiting.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                # The other end is gone: so is this one, and what it still sends goes nowhere.
                with contextlib.suppress(OSError):
                    source.shutdown(socket.SHUT_RD)
                if not data:
                    return

    threading.Thread(target=deliver, daemon=True).start()
    free_at = 0.0
    data = b"first"
    while data:
        try:
            data = source.recv(CHUNK_BYTES)
        except OSError:
            data = b""
        # Not from now on: what was on its way while this thread slept has used the line as well. The delay is whole.
        now = time.perf_counter()
        free_at = max(free_at, now - _LATE_SECONDS) + len(data) / bytes_s
        waiting.put((max(free_at, now) + delay, data))


def _serve(listener: socket.socket, host: str, port: int, delay: float, bytes_s: float) -> None:
    while True:
        near, _ = listener.accept()
        try:
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
            far.connect((host, port))
        except OSError:
            # Nobody there; the next one may find somebody.
            near.close()
            continue
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pass_on, args=(one, other, delay, bytes_s), daemon=True).start()


def main() -> None:
    """Relay until standard input ends."""
    delay, bytes_s = float(sys.argv[1]) / 2e3, float(sys.argv[2]) * 1e6 / 8
    for line in sys.stdin:
        host, _, port = line.strip().rpartition(":")
        listener = socket.socket()
        # Accepted sockets have it too: what the kernel holds counts as little as it would on a link.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=_serve, args=(listener, host, int(port), delay, bytes_s), daemon=True).start()


if __name__ == "__main__":
    main()
