"""Messages on the wire: one msgpack header with a typed body, then the raw frames of its tensors.

The header is a msgspec struct from a closed, tagged union, so nothing on the wire names code. Tensors travel as
their own bytes in row-major order; the header carries dtype and shape, and a receiver checks both against the
frame's length before it makes a tensor over the received memory, without a copy. A tensor beyond `FRAME_BYTES` takes
several frames: a larger frame could be sent by anybody who reaches the port, since ZeroMQ looks at a frame's size
alone before a peer has shown its key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import torch
import zmq

from splitsec.errors import MessageError, first_line, plain_text
from splitsec.transport.fields import MAX_DIMENSIONS, MAX_SIZE

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_TENSORS = 4096
# What a message says beside its tensors. The largest messages of real models, programs of 300 layers, take 100 kB.
HEADER_BYTES = 1 << 20
FRAME_BYTES = 1 << 22
MOST_REASON = 1000


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of every message body; the class name is its tag."""


class Refused(Message, frozen=True):
    """A request was not carried out; `reason` is one line, whatever the peer sent: see `plain_text`."""

    reason: str
    error: str = "RefusedError"

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "reason", plain_text(self.reason, MOST_REASON))
        msgspec.structs.force_setattr(self, "error", plain_text(self.error, 64))


class TensorInfo(msgspec.Struct, frozen=True, array_like=True):
    """dtype name and shape of one tensor frame."""

    dtype: str
    shape: tuple[int, ...]


BodyT = TypeVar("BodyT")


class Envelope(msgspec.Struct, Generic[BodyT], frozen=True, forbid_unknown_fields=True):
    """What the first frame of every message holds."""

    body: BodyT
    tensors: tuple[TensorInfo, ...] = ()


class Codec(Generic[BodyT]):
    """Encodes and decodes the messages of one closed union of body types.

    Args:
        bodies: the union.
        header_bytes: what a message may say beside its tensors; a longer one is neither sent nor looked at.
    """

    def __init__(self, bodies: Any, *, header_bytes: int = HEADER_BYTES) -> None:
        self.header_bytes = header_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Envelope[bodies])

    def encode(self, body: BodyT, tensors: Sequence[torch.Tensor] = ()) -> list[Any]:
        """Frames for `body` and CPU `tensors` of a dtype in `DTYPES`; non-contiguous ones are copied."""
        kept = [tensor.detach().contiguous() for tensor in tensors]
        infos = tuple(TensorInfo(_name_of(tensor), tuple(tensor.shape)) for tensor in kept)
        header = self._encoder.encode(Envelope(body=body, tensors=infos))
        if len(header) > self.header_bytes:
            raise MessageError(
                f"a {type(body).__name__} message of {len(header)} bytes beside its tensors is longer than the "
                f"{self.header_bytes} that may travel; use a smaller model or batch"
            )
        return [header, *(frame for tensor in kept for frame in in_frames(_bytes_of(tensor)))]

    def decode(self, frames: Sequence[zmq.Frame | bytes]) -> tuple[BodyT, list[torch.Tensor]]:
        """Body and tensors of a message; raises `MessageError` with the reason where it is malformed."""
        if not frames:
            raise MessageError("empty message")
        header = _buffer(frames[0])
        if len(header) > self.header_bytes:
            raise MessageError(f"a message header of {len(header)} bytes; at most {self.header_bytes} are read")
        try:
            envelope = self._decoder.decode(header)
        except RecursionError:
            # Not msgspec's own: the interpreter's limit of nesting, which ends the decoding early enough.
            raise MessageError("malformed message header: it is nested too deeply") from None
        except Exception as error:
            raise MessageError(f"malformed message header: {first_line(error)}") from None
        counts = [-(-_size_of(info) // FRAME_BYTES) or 1 for info in envelope.tensors]
        if len(counts) > MAX_TENSORS or sum(counts) != len(frames) - 1:
            raise MessageError(
                f"header names {len(counts)} tensors in {sum(counts)} frames, message has {len(frames) - 1} frames"
            )
        tensors, at = [], 1
        for info, count in zip(envelope.tensors, counts, strict=True):
            tensors.append(_tensor(info, frames[at : at + count]))
            at += count
        return envelope.body, tensors


def in_frames(data: memoryview | bytes) -> list[memoryview | bytes]:
    """What travels in frames of `FRAME_BYTES`, without a copy; at least one, which may be empty."""
    if len(data) <= FRAME_BYTES:
        return [data]
    view = memoryview(data)
    return [view[start : start + FRAME_BYTES] for start in range(0, len(view), FRAME_BYTES)]


def expect_tensor(tensor: torch.Tensor, *, what: str, dtype: torch.dtype, shape: Sequence[int | None]) -> torch.Tensor:
    """Return `tensor` if it has `dtype` and `shape` (None stands for any size), else raise `MessageError`."""
    if tensor.dtype != dtype:
        raise MessageError(f"{what} has dtype {tensor.dtype}, expected {dtype}")
    fits = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = "x".join("any" if size is None else str(size) for size in shape)
        have = "x".join(str(size) for size in tensor.shape)
        raise MessageError(f"{what} has shape {have}, expected {wanted}")
    return tensor


def _name_of(tensor: torch.Tensor) -> str:
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise MessageError(f"tensors of dtype {tensor.dtype} do not travel; use one of {', '.join(DTYPES)}")
    return name


def _bytes_of(tensor: torch.Tensor) -> memoryview | bytes:
    if tensor.numel() == 0:
        return b""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _buffer(frame: zmq.Frame | bytes) -> Any:
    return frame.buffer if isinstance(frame, zmq.Frame) else frame


def _size_of(info: TensorInfo) -> int:
    """Bytes of a tensor; raises `MessageError` for one that cannot be."""
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        raise MessageError(f"unknown dtype '{info.dtype[:32]}'")
    if len(info.shape) > MAX_DIMENSIONS or any(not 0 <= size < MAX_SIZE for size in info.shape):
        raise MessageError(f"impossible shape {info.shape[: MAX_DIMENSIONS + 1]}")
    return math.prod(info.shape) * dtype.itemsize


def _tensor(info: TensorInfo, frames: Sequence[zmq.Frame | bytes]) -> torch.Tensor:
    dtype, expected = DTYPES[info.dtype], _size_of(info)
    parts = [_buffer(frame) for frame in frames]
    size = sum(len(part) for part in parts)
    if size != expected:
        raise MessageError(f"tensor of {info.dtype} {info.shape} needs {expected} bytes, its frames have {size}")
    data = parts[0] if len(parts) == 1 and not isinstance(parts[0], bytes) else bytearray().join(parts)
    try:
        return (
            torch.frombuffer(data, dtype=dtype).view(info.shape) if expected else torch.empty(info.shape, dtype=dtype)
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise MessageError(f"impossible shape {info.shape}: {first_line(error)}") from None
