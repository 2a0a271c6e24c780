"""ZeroMQ sockets of a party: CURVE on every one, the peer's identity taken from its authenticated key.

`Wire` owns a party's ZeroMQ context and decides which public keys may connect. From it come `Link` (connected, one
peer), `hub.Hub` (bound, many peers) and `peer.Peer` (one on one). Every wait has a time limit and says whom it waited
for.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import zmq
import zmq.auth.thread

from splitsec import errors
from splitsec.errors import AddressError, PartyTimeoutError, RefusedError
from splitsec.transport.addresses import host_and_port
from splitsec.transport.admission import HANDSHAKE_SECONDS, Admission
from splitsec.transport.codec import FRAME_BYTES, Codec, Refused
from splitsec.transport.keys import KeyPair, fingerprint
from splitsec.transport.reaching import EVENTS as WAY_EVENTS
from splitsec.transport.reaching import Reaching, check_host

log = logging.getLogger(__name__)
BodyT = TypeVar("BodyT")
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
# twice as long for the next one (docs/performance.md).
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
        return Traffic(**vars(self))

    def since(self, earlier: Traffic) -> Traffic:
        """The difference of two readings of one counter."""
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
        """A bound CURVE server socket and its address with the port that was taken; `events` of it are watched from the
        first on (`Socket.get_monitor_socket`)."""
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
        """A CURVE client socket that accepts only the peer that holds `peer_key`; `events` as in `bind`."""
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
        """Close all sockets; what was sent gets a second to leave."""
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


class Reconnected(Exception):
    """A link was connected anew: the peer was started again, or what was on its way may be lost."""


class Link(Generic[BodyT]):
    """A connected socket to one party.

    Args:
        peer: its name.
        timeout: seconds to wait for it.
        others: public keys of other parties, to name the one whose address was given instead.

    Raises:
        AddressError: the address is none, or nobody knows its host.
    """

    def __init__(
        self,
        wire: Wire,
        address: str,
        *,
        peer: str,
        peer_key: bytes,
        codec: Codec[BodyT],
        timeout: float,
        others: Mapping[str, bytes] | None = None,
    ) -> None:
        check_host(peer, address)
        self.peer = peer
        self.address = address
        self.timeout = timeout
        self.traffic = Traffic()
        self._codec = codec
        self._wire = wire
        self._peer_key = peer_key
        self._others = others
        self._open()

    def _open(self) -> None:
        self._socket = self._wire.connect(zmq.DEALER, self.address, self._peer_key, events=WAY_EVENTS)
        self._way = Reaching(
            self._socket,
            peer=self.peer,
            address=self.address,
            peer_key=self._peer_key,
            keys=self._wire.keys,
            others=self._others,
        )
        self._monitor = self._way.monitor
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._leaving = zmq.Poller()
        self._leaving.register(self._socket, zmq.POLLOUT)
        self._leaving.register(self._monitor, zmq.POLLIN)

    def send(self, body: BodyT, tensors: Sequence[torch.Tensor] = ()) -> None:
        """Hand a message to the socket, which sends it as soon as it can.

        Raises:
            PartyTimeoutError: the peer has taken nothing for the link's time limit, and too much waits for it.
            AuthenticationError: the peer does not know our key.
        """
        frames = self._codec.encode(body, tensors)
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
                break
            except zmq.Again:
                self._wait_to_send(deadline)
        self.traffic.messages_sent += 1
        self.traffic.bytes_sent += sum(len(frame) for frame in frames)

    def _wait_to_send(self, deadline: float) -> None:
        left = max(0, deadline - time.monotonic())
        self._way.look(left)
        ready: dict[Any, int] = dict(self._leaving.poll(int(left * 1000)))
        if not ready:
            raise PartyTimeoutError(
                f"{self.peer} at {self.address} took no message for {self.timeout:g} s; is it running, and can it be "
                "reached?"
            )

    @property
    def connections(self) -> int:
        """How often the peer has been connected so far, 1 before it ever was."""
        with contextlib.suppress(errors.SplitsecError):
            # What is wrong with the way is said by `receive`.
            self._way.look(0)
        return max(1, self._way.connections)

    @property
    def connected(self) -> bool:
        """Whether the peer is connected now."""
        with contextlib.suppress(errors.SplitsecError):
            self._way.look(0)
        return self._way.there

    @property
    def lost(self) -> bool:
        """Whether the peer was connected and is not any more."""
        return self._way.lost

    def receive(
        self,
        timeout: float | None = None,
        *,
        spin: bool = False,
        spin_seconds: float = SPIN_SECONDS,
        connections: int | None = None,
    ) -> tuple[BodyT, list[torch.Tensor]]:
        """The peer's next message; `spin` as in `peer.Peer.receive`.

        Args:
            connections: what `connections` was when what is answered was sent; None not to compare.

        Raises:
            Reconnected: the peer has been connected anew since.
            PartyTimeoutError: nothing came within `timeout` seconds (the link's own limit if None).
            AuthenticationError: the peer does not know our key, or holds another than we know.
            AddressError: what listens at the address is another party, or none.
            RefusedError, or the error that the peer named: it refused our request.
        """
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        if spin:
            spin_until_readable(self._socket, spin_seconds)
        while True:
            left = 0 if self._way.failed else max(0, deadline - time.monotonic())
            ready: dict[Any, int] = dict(self._poller.poll(int(left * 1000)))
            if self._socket in ready:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                self.traffic.messages_received += 1
                self.traffic.rounds += 1
                self.traffic.bytes_received += sum(len(frame.buffer) for frame in frames)
                body, tensors = self._codec.decode(frames)
                if isinstance(body, Refused):
                    raise error_from(body, self.peer)
                return body, tensors
            if self._way.failed or self._monitor in ready:
                self._way.look(left)
                if connections is not None and self.connections > connections:
                    raise Reconnected
            elif not ready:
                raise self._way.silence(limit)

    def request(
        self, body: BodyT, tensors: Sequence[torch.Tensor] = (), *, timeout: float | None = None, spin: bool = False
    ) -> tuple[BodyT, list[torch.Tensor]]:
        """Send, then wait for the answer."""
        self.send(body, tensors)
        return self.receive(timeout, spin=spin)

    def renew(self) -> None:
        """Connect anew, with a new socket: what the old one had still to send gets no answer that would be taken for
        that to a later message."""
        self._way.close()
        self._socket.close(0)
        self._open()

    def request_again(
        self, body: BodyT, *, patience: float, pause: float = 2.0, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[BodyT, list[torch.Tensor]]:
        """Send, then wait for the answer; send once more to a peer that was started again meanwhile.

        Only for requests that may come twice.

        Args:
            patience: seconds to wait in all.
            meanwhile: called every `pause` seconds.

        Raises:
            PartyTimeoutError: no answer came.
        """
        deadline = time.monotonic() + patience
        connections = self.connections
        self.send(body)
        while True:
            left = deadline - time.monotonic()
            try:
                return self.receive(max(0.0, min(pause, left)), connections=connections)
            except Reconnected:
                self.renew()
                connections = self.connections
                self.send(body)
            except PartyTimeoutError:
                if left <= pause:
                    raise
                meanwhile()

    def close(self) -> None:
        self._way.close()
        self._socket.close()


def spin_until_readable(socket: zmq.Socket[bytes], seconds: float = SPIN_SECONDS) -> None:
    """Ask for a message again and again for so many seconds, or until there is one."""
    deadline = time.perf_counter() + seconds
    while not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN and time.perf_counter() < deadline:
        # Where there are fewer processors than busy threads, the one that brings the message must get to run.
        os.sched_yield()


def error_from(refused: Refused, peer: str) -> errors.SplitsecError:
    """The error that a peer's refusal stands for; unknown names become `RefusedError`."""
    kind = getattr(errors, refused.error, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.SplitsecError)):
        kind = RefusedError
    return kind(f"{peer}: {refused.reason}")
