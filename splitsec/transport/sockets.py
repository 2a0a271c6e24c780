"""ZeroMQ sockets of a party: CURVE on every one, the peer's identity taken from its authenticated key.

`Wire` owns a party's ZeroMQ context and decides which public keys may connect. From it come two kinds of
sockets: `Hub` (bound, many peers) and `Link` (connected, one peer); `peer` has a third. Every wait has a time limit and
says whom it waited for.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import zmq
import zmq.auth.thread
from zmq.utils.monitor import recv_monitor_message

from splitsec import errors
from splitsec.errors import AddressError, AuthenticationError, MessageError, PartyTimeoutError, RefusedError
from splitsec.transport.codec import Codec, Refused
from splitsec.transport.keys import KeyPair

log = logging.getLogger(__name__)
BodyT = TypeVar("BodyT")
MAX_FRAME_BYTES = 1 << 30
SPIN_SECONDS = 0.0005
# While training: a step takes longer than a round of a protocol, and a processor that has slept between two steps takes
# twice as long for the next one (docs/performance.md).
TRAINING_SPIN_SECONDS = 0.003
_REFUSALS = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


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


@dataclass(frozen=True)
class Sender:
    """Who sent a message: the party's name, from its key, and where a reply goes."""

    name: str
    route: bytes


@dataclass(frozen=True)
class Incoming(Generic[BodyT]):
    """One decoded message at a `Hub`."""

    sender: Sender
    body: BodyT
    tensors: list[torch.Tensor] = field(repr=False)


class _Gate:
    """Which keys may open which domain; called by pyzmq's authenticator for each handshake."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._allowed: dict[str, dict[bytes, str]] = {}

    def open(self, domain: str, allowed: Mapping[str, bytes]) -> None:
        self._allowed[domain] = {key: name for name, key in allowed.items()}

    def close(self, domain: str) -> None:
        self._allowed.pop(domain, None)

    def name_of(self, domain: str, key: bytes) -> str | None:
        return self._allowed.get(domain, {}).get(key)

    def callback(self, domain: str, key: bytes) -> bool:
        known = self.name_of(domain, key) is not None
        if not known:
            log.warning("%s refused a connection: unknown key %s", self._owner, key.decode("ascii", "replace"))
        return known


class Wire:
    """A party's context, key pair and gate; close it, or use it as a context manager, to free all its sockets."""

    def __init__(self, keys: KeyPair) -> None:
        self.keys = keys
        self.context = zmq.Context()
        self.context.setsockopt(zmq.LINGER, 1000)
        self.gate = _Gate(keys.name)
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self.context)
        self._authenticator.start()
        self._lock = threading.Lock()

    def admit(self, domain: str, allowed: Mapping[str, bytes]) -> None:
        """Let exactly the parties in `allowed` (name to public key) connect to sockets of `domain`."""
        with self._lock:
            self.gate.open(domain, allowed)
            self._authenticator.configure_curve_callback(domain, self.gate)

    def bind(self, kind: int, address: str, domain: str, *, events: int = 0) -> tuple[zmq.Socket[bytes], str]:
        """A bound CURVE server socket and its address with the port that was taken; `events` of it are watched from the
        first on (`Socket.get_monitor_socket`)."""
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

    def close(self) -> None:
        self._authenticator.stop()
        self.context.destroy(linger=1000)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30000)
        socket.setsockopt(zmq.SNDHWM, 256)
        socket.setsockopt(zmq.RCVHWM, 256)
        return socket


class Hub(Generic[BodyT]):
    """A bound socket that many known parties talk to.

    A malformed message is answered with `Refused` and logged; it never reaches the owner and never stops it.
    """

    def __init__(self, wire: Wire, address: str, allowed: Mapping[str, bytes], codec: Codec[BodyT]) -> None:
        self._wire = wire
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._codec = codec
        self._domain = "hub"
        wire.admit(self._domain, allowed)
        self._socket, self.address = wire.bind(zmq.ROUTER, address, self._domain)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake, zmq.POLLIN)
        self.traffic: dict[str, Traffic] = {name: Traffic() for name in allowed}

    def receive(
        self, timeout: float, *, spin: bool = False, spin_seconds: float = SPIN_SECONDS
    ) -> Incoming[BodyT] | None:
        """The next well-formed message, or None after `timeout` seconds or a `wake`; `spin` as in `Peer.receive`."""
        deadline = time.monotonic() + timeout
        if spin:
            spin_until_readable(self._socket, spin_seconds)
        while True:
            left = max(0, deadline - time.monotonic())
            ready: dict[Any, int] = dict(self._poller.poll(int(left * 1000)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._socket not in ready:
                return None
            frames = self._socket.recv_multipart(copy=False)
            sender = self._sender(frames)
            if sender is None:
                continue
            traffic = self.traffic[sender.name]
            traffic.messages_received += 1
            traffic.bytes_received += sum(len(frame.buffer) for frame in frames[1:])
            try:
                body, tensors = self._codec.decode(frames[1:])
            except MessageError as error:
                self.refuse(sender, error)
                continue
            return Incoming(sender, body, tensors)

    def wake(self) -> None:
        """Let a `receive` that waits return; the one method that any thread may call."""
        os.eventfd_write(self._wake, 1)

    def send(self, to: Sender, body: BodyT | Refused, tensors: Sequence[torch.Tensor] = ()) -> None:
        """Send to a party that has been heard from; one that is gone is logged, not an error."""
        frames = self._codec.encode(body, tensors)  # type: ignore[arg-type]
        traffic = self.traffic[to.name]
        traffic.messages_sent += 1
        traffic.bytes_sent += sum(len(frame) for frame in frames)
        self._socket.send_multipart([to.route, *frames], copy=False)

    def refuse(self, to: Sender, error: Exception) -> None:
        """Tell a party why its message was refused, and log it."""
        log.warning("refused a message of %s: %s", to.name, error)
        self.send(to, Refused(reason=str(error), error=type(error).__name__))

    def close(self) -> None:
        self._socket.close()
        os.close(self._wake)

    def _sender(self, frames: list[zmq.Frame]) -> Sender | None:
        if len(frames) < 2:
            return None
        try:
            key = str(frames[1].get("User-Id")).encode()
        except zmq.ZMQError:
            return None
        name = self._wire.gate.name_of(self._domain, key)
        return None if name is None else Sender(name, bytes(frames[0].buffer))


class Link(Generic[BodyT]):
    """A connected socket to one party."""

    def __init__(
        self, wire: Wire, address: str, *, peer: str, peer_key: bytes, codec: Codec[BodyT], timeout: float
    ) -> None:
        self.peer = peer
        self.address = address
        self.timeout = timeout
        self.traffic = Traffic()
        self._codec = codec
        self._socket = wire.connect(zmq.DEALER, address, peer_key)
        self._monitor = self._socket.get_monitor_socket(_REFUSALS)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def send(self, body: BodyT, tensors: Sequence[torch.Tensor] = ()) -> None:
        frames = self._codec.encode(body, tensors)
        self.traffic.messages_sent += 1
        self.traffic.bytes_sent += sum(len(frame) for frame in frames)
        self._socket.send_multipart(frames, copy=False)

    def receive(
        self, timeout: float | None = None, *, spin: bool = False, spin_seconds: float = SPIN_SECONDS
    ) -> tuple[BodyT, list[torch.Tensor]]:
        """The peer's next message; `spin` as in `peer.Peer.receive`.

        Raises:
            PartyTimeoutError: nothing came within `timeout` seconds (the link's own limit if None).
            AuthenticationError: the peer does not know our key.
            RefusedError, or the error that the peer named: it refused our request.
        """
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        if spin:
            spin_until_readable(self._socket, spin_seconds)
        while True:
            left = max(0, deadline - time.monotonic())
            ready: dict[Any, int] = dict(self._poller.poll(int(left * 1000)))
            if self._socket in ready:
                frames = self._socket.recv_multipart(copy=False)
                self.traffic.messages_received += 1
                self.traffic.rounds += 1
                self.traffic.bytes_received += sum(len(frame.buffer) for frame in frames)
                body, tensors = self._codec.decode(frames)
                if isinstance(body, Refused):
                    raise error_from(body, self.peer)
                return body, tensors
            if self._monitor in ready:
                recv_monitor_message(self._monitor)
                raise AuthenticationError(
                    f"{self.peer} at {self.address} refused our key; give it our current public key and restart it"
                )
            if not ready:
                raise PartyTimeoutError(
                    f"{self.peer} at {self.address} did not answer within {limit:g} s; is it running, and is the "
                    f"public key that we hold for it its current one?"
                )

    def request(
        self, body: BodyT, tensors: Sequence[torch.Tensor] = (), *, timeout: float | None = None, spin: bool = False
    ) -> tuple[BodyT, list[torch.Tensor]]:
        """Send, then wait for the answer."""
        self.send(body, tensors)
        return self.receive(timeout, spin=spin)

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
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
