"""The bound end of a star: one socket that many known parties talk to."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import zmq

from splitsec.errors import MessageError
from splitsec.transport.codec import Codec, Message, Refused
from splitsec.transport.sockets import SPIN_SECONDS, Traffic, Wire, spin_until_readable
from splitsec.transport.tensor_specs import NO_TENSORS, NamedTensors

log = logging.getLogger(__name__)
BodyT = TypeVar("BodyT", bound=Message)
# For one party, beyond what its connection holds (see `sockets.HIGH_WATER`).
MOST_WAITING = 1024
MOST_WAITING_BYTES = 1 << 28
WAIT_SECONDS = 60.0
RETRY_SECONDS = 0.02
# How long the earlier connection of a party that connects anew may take to end.
END_SECONDS = 1.0


@dataclass(frozen=True)
class Sender:
    """Sender of a message: the party's name, from its key, and the route of a reply."""

    name: str
    route: bytes


@dataclass
class _Waiting:
    """Messages that a party's connection has not taken, and when it last took one."""

    to: Sender
    since: float
    size: int = 0
    messages: deque[list[Any]] = field(default_factory=deque, repr=False)


@dataclass(frozen=True)
class Incoming(Generic[BodyT]):
    """One decoded message at a `Hub`."""

    sender: Sender
    body: BodyT
    tensors: NamedTensors = field(repr=False)


class Hub(Generic[BodyT]):
    """A bound socket that many known parties talk to.

    A malformed message is answered with `Refused` and logged; it never reaches the owner and never stops it. Nothing
    that is sent is lost without a line in the log: what a party's connection does not take yet waits here, up to
    `MOST_WAITING` messages for `WAIT_SECONDS`, and is sent by later calls of `receive` and `send`.
    """

    def __init__(self, wire: Wire, address: str, allowed: Mapping[str, bytes], codec: Codec[BodyT]) -> None:
        self._wire = wire
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._codec = codec
        self._domain = "hub"
        wire.admit(self._domain, allowed)
        self._socket, self.address = wire.bind(zmq.ROUTER, address, self._domain)
        # Without this a message to a party that is gone, or takes nothing, would vanish.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._admission = wire.watch(self._socket)
        self._waiting: dict[bytes, _Waiting] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake, zmq.POLLIN)
        self.traffic: dict[str, Traffic] = {name: Traffic() for name in allowed}

    def receive(
        self, timeout: float, *, spin: bool = False, spin_seconds: float = SPIN_SECONDS
    ) -> Incoming[BodyT] | None:
        """Return the next well-formed message, or None after `timeout` seconds or a `wake`.

        Args:
            spin: as in `Peer.receive`.
        """
        deadline = time.monotonic() + timeout
        if spin:
            spin_until_readable(self._socket, spin_seconds)
        while True:
            self._flush()
            left = max(0, deadline - time.monotonic())
            pause = min(left, RETRY_SECONDS) if self._waiting else left
            ready: dict[Any, int] = dict(self._poller.poll(int(pause * 1000)))
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if self._socket not in ready:
                if pause < left and self._wake not in ready:
                    continue
                return None
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
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

    def send(self, to: Sender, body: BodyT | Refused, tensors: NamedTensors = NO_TENSORS) -> None:
        """Send to a party that has been heard from; one that is gone is logged, not an error. Never blocks."""
        frames = self._codec.encode(body, tensors)  # type: ignore[arg-type]
        waiting = self._waiting.get(to.route)
        if waiting is None and self._try(to, frames):
            return
        if waiting is None:
            waiting = self._waiting[to.route] = _Waiting(to, time.monotonic())
        if len(waiting.messages) >= MOST_WAITING or waiting.size > MOST_WAITING_BYTES:
            self._give_up(waiting, f"{len(waiting.messages)} messages wait for it")
            return
        waiting.messages.append(frames)
        waiting.size += sum(len(frame) for frame in frames)

    def is_there(self, to: Sender, body: BodyT) -> bool:
        """Return whether a party's connection is still open; `body` is a message that it may get at any time."""
        try:
            self._socket.send_multipart([to.route, *self._codec.encode(body)], zmq.NOBLOCK)
        except zmq.Again:
            return True
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            return False
        return True

    def has_ended(self, to: Sender, body: BodyT, *, within: float = END_SECONDS) -> bool:
        """Return whether a party's connection is closed, or closes within `within` seconds; `body` is as in `is_there`.

        The end of a connection is heard in another thread than its messages, so the first message of a party's next
        connection may come before it.
        """
        deadline = time.monotonic() + within
        while self.is_there(to, body):
            if time.monotonic() >= deadline:
                return False
            time.sleep(RETRY_SECONDS)
        return True

    def _try(self, to: Sender, frames: list[Any]) -> bool:
        """Return whether a message was handed to the party's connection, or the party is gone, which is logged."""
        try:
            self._socket.send_multipart([to.route, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            log.info("a message for %s is dropped: its connection is gone", to.name)
            return True
        traffic = self.traffic[to.name]
        traffic.messages_sent += 1
        traffic.bytes_sent += sum(len(frame) for frame in frames)
        return True

    def _flush(self) -> None:
        """Send the messages that wait, as far as connections take them."""
        for waiting in list(self._waiting.values()):
            while waiting.messages and self._try(waiting.to, waiting.messages[0]):
                waiting.size -= sum(len(frame) for frame in waiting.messages.popleft())
                waiting.since = time.monotonic()
            if not waiting.messages:
                del self._waiting[waiting.to.route]
            elif time.monotonic() - waiting.since > WAIT_SECONDS:
                self._give_up(waiting, f"it took nothing for {WAIT_SECONDS:g} s")

    def _give_up(self, waiting: _Waiting, why: str) -> None:
        log.warning("%d messages for %s are dropped: %s", len(waiting.messages) + 1, waiting.to.name, why)
        self._waiting.pop(waiting.to.route, None)

    def is_waiting(self, to: Sender) -> bool:
        """Return whether messages wait here since a party's connection takes none; any thread may ask."""
        return to.route in self._waiting

    def refuse(self, to: Sender, error: Exception) -> None:
        """Tell a party why its message was refused, and log it."""
        log.warning("refused a message of %s: %s", to.name, error)
        self.send(to, Refused.of(error))

    def close(self) -> None:
        """Close the socket; messages that wait are sent as far as connections take them."""
        self._flush()
        self._admission.stop()
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
