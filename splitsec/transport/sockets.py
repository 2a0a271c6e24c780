"""ZeroMQ sockets of a party: CURVE on every one, the peer's identity taken from its authenticated key.

`Wire` owns a party's ZeroMQ context and decides which public keys may connect. From it come `link.Link` (connected, one
peer), `hub.Hub` (bound, many peers) and `peer.Peer` (one on one). Every wait has a time limit and says whom it waited
for.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import zmq
import zmq.auth.thread

from splitsec.errors import AddressError
from splitsec.transport.addresses import host_and_port
from splitsec.transport.admission import HANDSHAKE_SECONDS, Admission
from splitsec.transport.codec import FRAME_BYTES
from splitsec.transport.keys import KeyPair, fingerprint

log = logging.getLogger(__name__)
# Of a frame with CURVE's own bytes around it. A peer may send as much before it has shown a key.
MAX_FRAME_BYTES = FRAME_BYTES + 4096
# Messages that wait in a socket for a peer to take them.
HIGH_WATER = 256
# How often one end asks whether the other is there, and after what silence either takes it for gone.
HEARTBEAT_MS = 5_000
SILENCE_MS = 30_000
# For the end of a wire, which sends what waits for at most a second.
CLOSE_SECONDS = 10.0
SPIN_SECONDS = 0.0005
# While training: a step takes longer than a round of a protocol, and a processor that has slept between two steps takes
# twice as long for the next one (docs/reference/performance.md).
TRAINING_SPIN_SECONDS = 0.003


@dataclass
class Traffic:
    """What one socket carried: payload bytes and messages each way, and rounds.

    A round is one time that this party had to wait for its peer's next message before it could go on.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    rounds: int = 0

    def copy(self) -> Traffic:
        """Return a reading that does not count on."""
        return Traffic(**vars(self))

    def since(self, earlier: Traffic) -> Traffic:
        """Return what was carried since an earlier reading."""
        return Traffic(**{name: value - getattr(earlier, name) for name, value in vars(self).items()})


class _Gate:
    """Which keys may open which domain; called by pyzmq's authenticator for each handshake."""

    def __init__(self, owner: str, known: Mapping[str, bytes]) -> None:
        self._owner = owner
        self._known = {key: name for name, key in known.items()}
        self._allowed: dict[str, dict[bytes, str]] = {}

    def open(self, domain: str, allowed: Mapping[str, bytes]) -> None:
        self._allowed[domain] = {key: name for name, key in allowed.items()}

    def close(self, domain: str) -> None:
        self._allowed.pop(domain, None)

    def name_of(self, domain: str, key: bytes) -> str | None:
        return self._allowed.get(domain, {}).get(key)

    def callback(self, domain: str, key: bytes) -> bool:
        if self.name_of(domain, key) is not None:
            return True
        if key in self._known:
            log.warning("%s refused %s, which is not among those who may take part", self._owner, self._known[key])
        else:
            log.warning(
                "%s refused a connection: unknown key (fingerprint %s); if a party has a new one, put its NAME.key "
                "into the key directory and start again",
                self._owner,
                fingerprint(key),
            )
        return False


class Wire:
    """A party's context, key pair and gate; close it, or use it as a context manager, to free all its sockets.

    Args:
        known: public keys of parties, to name one that is refused.
    """

    def __init__(self, keys: KeyPair, *, known: Mapping[str, bytes] | None = None) -> None:
        self.keys = keys
        self.context = zmq.Context()
        self.context.setsockopt(zmq.LINGER, 1000)
        self.gate = _Gate(keys.name, known or {})
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self.context)
        self._authenticator.start()
        self._lock = threading.Lock()
        self._admissions: list[Admission] = []

    def admit(self, domain: str, allowed: Mapping[str, bytes]) -> None:
        """Let exactly the parties in `allowed` (name to public key) connect to sockets of `domain`."""
        with self._lock:
            self.gate.open(domain, allowed)
            self._authenticator.configure_curve_callback(domain, self.gate)

    def bind(self, kind: int, address: str, domain: str, *, events: int = 0) -> tuple[zmq.Socket[bytes], str]:
        """Return a bound CURVE server socket, and its address with the port that it got.

        Args:
            events: those of the socket that its monitor is to see (`Socket.get_monitor_socket`), from the first on.

        Raises:
            AddressError: the address is none, or its port is in use.
        """
        host_and_port(address, listen=True)
        socket = self._socket(kind)
        if events:
            socket.get_monitor_socket(events)
        socket.curve_server = True
        socket.curve_publickey = self.keys.public
        socket.curve_secretkey = self.keys.secret
        socket.zap_domain = domain.encode()
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            socket.close(0)
            if error.errno == errno.EADDRINUSE:
                raise AddressError(
                    f"{self.keys.name} cannot listen on {address}: the port is in use; end the program that holds "
                    "it or choose another port"
                ) from None
            raise AddressError(f"{self.keys.name} cannot listen on {address}: {error.strerror}") from None
        return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, kind: int, address: str, peer_key: bytes, *, events: int = 0) -> zmq.Socket[bytes]:
        """Return a CURVE client socket that accepts only the peer that holds `peer_key`; `events` as in `bind`."""
        socket = self._socket(kind)
        # The end that connects asks whether the other is there, and has it expect that. Not the other way round: ZeroMQ
        # 4.3.5 aborts the process when it is to ask a peer that has vanished while more of its messages wait than the
        # high-water mark, so that whoever floods a bound socket and goes would end its party (zeromq/libzmq#4841).
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, SILENCE_MS)
        if events:
            socket.get_monitor_socket(events)
        try:
            socket.curve_serverkey = peer_key
            socket.curve_publickey = self.keys.public
            socket.curve_secretkey = self.keys.secret
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise AddressError(f"cannot connect to {address}: {error.strerror}") from None
        return socket

    def watch(self, bound: zmq.Socket[bytes]) -> Admission:
        """Limit the connections to a bound socket that have shown no key, until the wire is closed."""
        admission = Admission(bound, owner=self.keys.name)
        self._admissions.append(admission)
        return admission

    def close(self) -> None:
        """Close all sockets; messages on their way have a second to leave."""
        for admission in self._admissions:
            admission.stop()
        self._authenticator.stop()
        # In a thread of its own, since ZeroMQ has no limit for how long the end of a context may take.
        ending = threading.Thread(target=self.context.destroy, args=(1000,), name="end of a context", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)
        if ending.is_alive():
            log.warning("%s leaves sockets that did not close within %g s", self.keys.name, CLOSE_SECONDS)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 1000 * HANDSHAKE_SECONDS)
        socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        return socket


def spin_until_readable(socket: zmq.Socket[bytes], seconds: float = SPIN_SECONDS) -> None:
    """Ask for a message again and again until there is one, for `seconds` at most."""
    deadline = time.perf_counter() + seconds
    while not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN and time.perf_counter() < deadline:
        # Where there are fewer processors than busy threads, the one that brings the message must get to run.
        os.sched_yield()
