"""Whether the other end of a one-on-one socket is there, by ZeroMQ's own events.

The kernel says at once when the process at the other end dies; ZeroMQ's heartbeats say within half a minute when its
machine, or the network between, does.
"""

from __future__ import annotations

import time

import zmq
from zmq.utils.monitor import recv_monitor_message

EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
# A connection that breaks is made anew within a second where both processes live.
GONE_SECONDS = 3.0
# From a session's opening to the handshake on its own socket.
CONNECT_SECONDS = 20.0


class Presence:
    """Connections of a socket that was bound or connected with `events=EVENTS`; for the socket's own thread.

    Attributes:
        came: whether the peer has proved its key at any time.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(EVENTS)
        self._since = time.monotonic()
        # At a bound socket by descriptor, since others may knock too; at one that connects there is one at most.
        self._accepted: set[int] = set()
        self._joined = False
        self.came = False

    def absent(self) -> float:
        """Return for how many seconds no peer has been connected, 0 if one is."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._accepted.add(event["value"])
            elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.came = self._joined = True
            else:
                self._accepted.discard(event["value"])
                # A stranger that was turned away disconnects as well.
                if self._joined and not self._accepted:
                    self._joined, self._since = False, time.monotonic()
        return 0.0 if self._joined else time.monotonic() - self._since

    def close(self) -> None:
        """Stop listening to the socket's events; before the socket itself is closed."""
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close(0)
