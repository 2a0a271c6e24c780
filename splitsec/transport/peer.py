"""The two ends of a prediction session: one on one, made for short round trips.

Messages are those of a codec, or raw frames: ring elements whose shapes both ends know, without a description.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
import zmq

from splitsec.errors import MessageError, PartyTimeoutError
from splitsec.transport.codec import FRAME_BYTES, Codec, Message, Refused, error_from, in_frames
from splitsec.transport.sockets import SPIN_SECONDS, Traffic, spin_until_readable
from splitsec.transport.tensor_specs import NO_TENSORS, NamedTensors

log = logging.getLogger(__name__)
BodyT = TypeVar("BodyT", bound=Message)
# A raw frame begins with a byte that no msgpack message begins with, so the two kinds cannot be taken for each other.
RAW_MARK = 0xC1
RAW_START = bytes([RAW_MARK])
RAW_HEADER = struct.Struct("<B3xI")
# How often the owner of a peer that is waited for looks at why it waits.
WATCH_SECONDS = 0.25
ResultT = TypeVar("ResultT")


class Peer(Generic[BodyT]):
    """One end of a one-on-one socket, made for short round trips: no poller, no monitor, no routing.

    Args:
        timeout: seconds to wait for the peer.
        watch: called a few times a second while the peer is waited for; what it raises ends the wait.
        address: the peer's, for messages.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        *,
        peer: str,
        codec: Codec[BodyT],
        timeout: float,
        watch: Callable[[], None] | None = None,
        address: str = "",
    ) -> None:
        self.peer = peer
        self.address = address
        self.traffic = Traffic()
        self._codec = codec
        self._socket = socket
        self._next: list[zmq.Frame] | None = None
        self.timeout = timeout
        self._watch = watch
        slice_ms = max(1, int(1000 * (timeout if watch is None else min(timeout, WATCH_SECONDS))))
        self._socket.setsockopt(zmq.RCVTIMEO, slice_ms)
        self._socket.setsockopt(zmq.SNDTIMEO, slice_ms)

    def send(self, body: BodyT, tensors: NamedTensors = NO_TENSORS) -> None:
        """Send a message; raises `PartyTimeoutError` where the peer takes none for the time limit."""
        frames = self._codec.encode(body, tensors)
        self.traffic.messages_sent += 1
        self.traffic.bytes_sent += sum(len(frame) for frame in frames)
        self._patiently(lambda: self._socket.send_multipart(frames, copy=False))

    def send_raw(self, step: int, tensors: Sequence[torch.Tensor]) -> None:
        """Send int64 tensors whose shapes the peer knows, as one frame without a description: the short way."""
        frame = raw_frame(step, tensors)
        self.traffic.messages_sent += 1
        self.traffic.bytes_sent += len(frame)
        if len(frame) < zmq.COPY_THRESHOLD:
            self._patiently(lambda: self._socket.send(frame))
        elif len(frame) <= FRAME_BYTES:
            self._patiently(lambda: self._socket.send(frame, copy=False))
        else:
            self._patiently(lambda: self._socket.send_multipart(in_frames(frame), copy=False))

    def receive_raw(self, step: int, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the tensors that the peer sent with `send_raw` in the same step: int64, of the shapes of `like`.

        Raises:
            MessageError: another message, another step or another size.
        """
        frames = self._frames(spin=True)
        expected = RAW_HEADER.size + sum(8 * tensor.numel() for tensor in like)
        if not _is_raw(frames):
            body, _ = self._decoded(frames)
            raise MessageError(f"{self.peer} sent {type(body).__name__} where masked values were due")
        _, sent_step = RAW_HEADER.unpack_from(frames[0].buffer)
        size = sum(len(frame.buffer) for frame in frames)
        if sent_step != step or size != expected:
            raise MessageError(
                f"{self.peer} sent {size} bytes for step {sent_step}; expected {expected} bytes for step {step}"
            )
        data = frames[0].buffer if len(frames) == 1 else bytearray().join(frame.buffer for frame in frames)
        values = (
            torch.frombuffer(data, dtype=torch.int64, offset=RAW_HEADER.size) if expected > RAW_HEADER.size else None
        )
        tensors, at = [], 0
        for tensor in like:
            count = tensor.numel()
            empty = values is None or not count
            tensors.append(torch.empty_like(tensor) if empty else values[at : at + count].view(tensor.shape))  # type: ignore[index]
            at += count
        return tensors

    def receive(self, *, spin: bool = False) -> tuple[BodyT, dict[str, Any]]:
        """Return the peer's next message.

        Args:
            spin: ask again and again for half a millisecond before going to sleep. A sleeping thread is woken through
                ZeroMQ's own thread, which costs several times what the message takes (docs/reference/performance.md).

        Raises:
            PartyTimeoutError: nothing came; names the peer.
            RefusedError, or the error that the peer names: it gave up.
        """
        return self._decoded(self._frames(spin=spin))

    def poll(self, timeout: float) -> bool:
        """Return whether a message comes within `timeout` seconds; it stays to be received."""
        if timeout <= SPIN_SECONDS:
            spin_until_readable(self._socket)
            timeout = 0
        return bool(self._socket.poll(int(timeout * 1000)))

    def next_is_raw(self) -> bool:
        """Return whether the peer's next message, which must be there, is a raw one; it stays to be received."""
        self._next = self._frames(spin=False)
        return _is_raw(self._next)

    def _frames(self, *, spin: bool) -> list[zmq.Frame]:
        if self._next is not None:
            frames, self._next = self._next, None
            return frames
        if spin:
            spin_until_readable(self._socket)
        frames = self._patiently(lambda: self._socket.recv_multipart(copy=False))
        self.traffic.messages_received += 1
        self.traffic.rounds += 1
        self.traffic.bytes_received += sum(len(frame.buffer) for frame in frames)
        return frames

    def _decoded(self, frames: list[zmq.Frame]) -> tuple[BodyT, dict[str, Any]]:
        body, tensors = self._codec.decode(frames)
        if isinstance(body, Refused):
            raise error_from(body, self.peer)
        return body, tensors

    def refuse(self, error: Exception) -> None:
        """Tell the peer that this end gives up; never raises."""
        try:
            frames = self._codec.encode(Refused.of(error))  # type: ignore[arg-type]
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
        except zmq.ZMQError:
            log.debug("%s could not be told: %s", self.peer, error)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _patiently(self, act: Callable[[], ResultT]) -> ResultT:
        """Send or receive, for `timeout` seconds at most, with a look at `watch` now and then."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return act()
            except zmq.Again:
                if self._watch is not None:
                    self._watch()
                if time.monotonic() >= deadline:
                    raise self._missing() from None

    def _missing(self) -> PartyTimeoutError:
        where = f" at {self.address}" if self.address else ""
        return PartyTimeoutError(f"{self.peer} fell silent for {self.timeout:g} s in the middle of a session{where}")


def _is_raw(frames: Sequence[zmq.Frame]) -> bool:
    data = frames[0].buffer
    return len(data) >= RAW_HEADER.size and bytes(data[:1]) == RAW_START


def raw_frame(step: int, tensors: Sequence[torch.Tensor]) -> bytes:
    """Return the bytes that `Peer.send_raw` sends."""
    return b"".join((RAW_HEADER.pack(RAW_MARK, step), *(tensor.contiguous().numpy().data for tensor in tensors)))
