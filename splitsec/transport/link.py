"""The connected end of a star: one socket to one known party, which need not be there yet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import zmq

from splitsec.errors import PartyTimeoutError, SplitsecError
from splitsec.transport.codec import Codec, Message, Refused, error_from
from splitsec.transport.reaching import EVENTS, Reaching, check_host
from splitsec.transport.sockets import SPIN_SECONDS, Traffic, Wire, spin_until_readable
from splitsec.transport.tensor_specs import NO_TENSORS, NamedTensors

BodyT = TypeVar("BodyT", bound=Message)


class ReconnectedError(Exception):
    """A link was connected anew: the peer was started again, or messages on their way may be lost."""


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
        self._socket = self._wire.connect(zmq.DEALER, self.address, self._peer_key, events=EVENTS)
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

    def send(self, body: BodyT, tensors: NamedTensors = NO_TENSORS) -> None:
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
        """Return how often the peer has been connected so far, 1 before it ever was."""
        with contextlib.suppress(SplitsecError):
            # What is wrong with the way is said by `receive`.
            self._way.look(0)
        return max(1, self._way.connections)

    @property
    def connected(self) -> bool:
        """Return whether the peer is connected now."""
        with contextlib.suppress(SplitsecError):
            self._way.look(0)
        return self._way.there

    @property
    def lost(self) -> bool:
        """Return whether the peer was connected and is not any more."""
        return self._way.lost

    def receive(
        self,
        timeout: float | None = None,
        *,
        spin: bool = False,
        spin_seconds: float = SPIN_SECONDS,
        connections: int | None = None,
    ) -> tuple[BodyT, dict[str, Any]]:
        """Return the peer's next message.

        Args:
            timeout: seconds to wait; None for the link's own limit.
            spin: as in `peer.Peer.receive`.
            connections: what `connections` was when the request was sent; None not to compare.

        Raises:
            ReconnectedError: the peer has been connected anew since.
            PartyTimeoutError: nothing came within `timeout` seconds.
            AuthenticationError: the peer does not know our key, or holds another than we know.
            AddressError: what listens at the address is another party, or none.
            RefusedError, or the error that the peer names: it refused our request.
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
                    raise ReconnectedError
            elif not ready:
                raise self._way.silence(limit)

    def request(
        self, body: BodyT, tensors: NamedTensors = NO_TENSORS, *, timeout: float | None = None, spin: bool = False
    ) -> tuple[BodyT, dict[str, Any]]:
        """Send a request and wait for its answer."""
        self.send(body, tensors)
        return self.receive(timeout, spin=spin)

    def renew(self) -> None:
        """Connect anew, with a new socket.

        Messages that the old one had still to send get no answer, which could be mistaken for that to a later message.
        """
        self._way.close()
        self._socket.close(0)
        self._open()

    def request_again(
        self, body: BodyT, *, patience: float, pause: float = 2.0, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[BodyT, dict[str, Any]]:
        """Send a request and wait for its answer; send it once more to a peer that was started again meanwhile.

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
            except ReconnectedError:
                self.renew()
                connections = self.connections
                self.send(body)
            except PartyTimeoutError:
                if left <= pause:
                    raise
                meanwhile()

    def close(self) -> None:
        """Close the socket."""
        self._way.close()
        self._socket.close()
