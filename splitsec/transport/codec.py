"""Messages on the wire: one msgpack header with a typed body, then the raw frames of its tensors.

The header is a msgspec struct from a closed, tagged union, so nothing on the wire names code. Tensors travel as
their own bytes in row-major order; the header carries dtype and shape. A receiver checks both against what the body's
class declares (see `tensor_specs`) and against the frames' length before it makes a tensor over the received memory,
without a copy. A tensor beyond `FRAME_BYTES` takes several frames: a larger frame could be sent by anybody who reaches
the port, since ZeroMQ looks at a frame's size alone before a peer has shown its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import torch
import zmq

from splitsec import errors
from splitsec.errors import MessageError, first_line, plain_text
from splitsec.transport.fields import MAX_DIMENSIONS, MAX_SIZE
from splitsec.transport.tensor_specs import (
    DTYPE_NAMES,
    DTYPES,
    ITEM_SIZES,
    MAX_TENSORS,
    NO_TENSORS,
    NamedTensors,
    TensorInfo,
    Tensors,
    shape_text,
)

# What a message says beside its tensors. The largest messages of real models, programs of 300 layers, take 100 kB.
HEADER_BYTES = 1 << 20
FRAME_BYTES = 1 << 22
MOST_REASON = 1000


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of every message body; the class name is its tag.

    Attributes:
        tensors: those that travel with the body.
    """

    tensors: ClassVar[Tensors] = Tensors()


class Refused(Message, frozen=True):
    """Any party to any other: a request was not carried out.

    `reason` is one line of at most `MOST_REASON` characters, whatever the peer sent (see `plain_text`); `error` names a
    class of `splitsec.errors`.
    """

    reason: str
    error: str = "RefusedError"

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "reason", plain_text(self.reason, MOST_REASON))
        msgspec.structs.force_setattr(self, "error", plain_text(self.error, 64))

    @staticmethod
    def of(error: Exception) -> Refused:
        """Return the refusal that tells a peer of an error."""
        return Refused(reason=str(error), error=type(error).__name__)


def error_from(refused: Refused, peer: str) -> errors.SplitsecError:
    """Return the error that a peer's refusal stands for; unknown names become `RefusedError`."""
    kind = getattr(errors, refused.error, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.SplitsecError)):
        kind = errors.RefusedError
    return kind(f"{peer}: {refused.reason}")


def _from_wire(kind: type[Any], value: Any) -> Any:
    """Read a field whose type says by `from_wire` how."""
    return kind.from_wire(value)


BodyT = TypeVar("BodyT", bound=Message)


class Envelope(msgspec.Struct, Generic[BodyT], frozen=True, forbid_unknown_fields=True):
    """Content of the first frame of every message."""

    body: BodyT
    tensors: tuple[TensorInfo | None, ...] = ()


class Codec(Generic[BodyT]):
    """Encodes and decodes the messages of one closed union of body types.

    Args:
        bodies: the union.
        header_bytes: how long a message may be beside its tensors; a longer one is neither sent nor looked at.
    """

    def __init__(self, bodies: Any, *, header_bytes: int = HEADER_BYTES) -> None:
        self.header_bytes = header_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Envelope[bodies], dec_hook=_from_wire)

    def encode(self, body: BodyT, tensors: NamedTensors = NO_TENSORS) -> list[Any]:
        """Return the frames of a message.

        Args:
            tensors: on the CPU, by the names that the body's class declares; non-contiguous ones are copied.

        Raises:
            MessageError: a tensor is missing, not declared, or of a dtype that does not travel; or it is too long.
        """
        kind = type(body)
        infos: list[TensorInfo | None] = []
        frames: list[Any] = []
        for tensor in kind.tensors.in_order(kind.__name__, tensors):
            if tensor is None:
                infos.append(None)
                continue
            name = DTYPE_NAMES.get(tensor.dtype)
            if name is None:
                raise MessageError(f"tensors of dtype {tensor.dtype} do not travel; use one of {', '.join(DTYPES)}")
            infos.append(TensorInfo(name, tuple(tensor.shape)))
            frames += in_frames(_bytes_of(tensor.detach().contiguous()))
        header = self._encoder.encode(Envelope(body=body, tensors=tuple(infos)))
        if len(header) > self.header_bytes:
            raise MessageError(
                f"a {kind.__name__} message of {len(header)} bytes beside its tensors is longer than the "
                f"{self.header_bytes} that may travel; use a smaller model or batch"
            )
        return [header, *frames]

    def decode(self, frames: Sequence[zmq.Frame | bytes]) -> tuple[BodyT, dict[str, Any]]:
        """Return the body and the tensors of a message.

        The tensors are those that the body's class declares: by name a tensor, or a list of tensors for a group.

        Raises:
            MessageError: the message is malformed, or its tensors are others than are declared; says how.
        """
        envelope = self._envelope(frames)
        body, infos = envelope.body, envelope.tensors
        sizes = [-1 if info is None else _size_of(info) for info in infos]
        counts = [1 if 0 <= size <= FRAME_BYTES else -(-size // FRAME_BYTES) for size in sizes]
        if len(infos) > MAX_TENSORS or sum(counts) != len(frames) - 1:
            raise MessageError(
                f"header names {len(infos)} tensors in {sum(counts)} frames, message has {len(frames) - 1} frames"
            )
        declared = type(body).tensors
        names = declared.names_of(type(body).__name__, infos)
        tensors: dict[str, Any] = {} if declared.group is None else {declared.group: []}
        at = 1
        for name, info, size, count in zip(names, infos, sizes, counts, strict=True):
            if info is None:
                continue
            tensor = _tensor(info, size, frames[at : at + count])
            at += count
            if name == declared.group:
                tensors[name].append(tensor)
            else:
                tensors[name] = tensor
        return body, tensors

    def _envelope(self, frames: Sequence[zmq.Frame | bytes]) -> Envelope[BodyT]:
        """Return the header of a message; raises `MessageError` for one that cannot be read."""
        if not frames:
            raise MessageError("empty message")
        header = _buffer(frames[0])
        if len(header) > self.header_bytes:
            raise MessageError(f"a message header of {len(header)} bytes; at most {self.header_bytes} are read")
        try:
            envelope: Envelope[BodyT] = self._decoder.decode(header)
        except RecursionError:
            # Not msgspec's own: the interpreter's limit of nesting, which ends the decoding early enough.
            raise MessageError("malformed message header: it is nested too deeply") from None
        except Exception as error:
            raise MessageError(f"malformed message header: {first_line(error)}") from None
        return envelope


def in_frames(data: memoryview | bytes) -> list[memoryview | bytes]:
    """Return bytes as frames of at most `FRAME_BYTES`, without a copy; at least one, which may be empty."""
    if len(data) <= FRAME_BYTES:
        return [data]
    view = memoryview(data)
    return [view[start : start + FRAME_BYTES] for start in range(0, len(view), FRAME_BYTES)]


def expect_shape(tensor: torch.Tensor, shape: Sequence[int | None], *, what: str) -> torch.Tensor:
    """Return `tensor` if it has `shape` (None stands for any size), else raise `MessageError`."""
    fits = tensor.dim() == len(shape) and all(
        expected is None or size == expected for size, expected in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise MessageError(f"{what} has shape {shape_text(tensor.shape)}, expected {shape_text(shape)}")
    return tensor


def _bytes_of(tensor: torch.Tensor) -> memoryview | bytes:
    if tensor.numel() == 0:
        return b""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _buffer(frame: zmq.Frame | bytes) -> Any:
    return frame.buffer if isinstance(frame, zmq.Frame) else frame


def _size_of(info: TensorInfo) -> int:
    """Return the bytes of a tensor; raises `MessageError` for one that cannot be."""
    size = ITEM_SIZES.get(info.dtype)
    if size is None:
        raise MessageError(f"unknown dtype '{info.dtype[:32]}'")
    possible = len(info.shape) <= MAX_DIMENSIONS
    for length in info.shape:
        possible = possible and 0 <= length < MAX_SIZE
        size *= length
    if not possible:
        raise MessageError(f"impossible shape {info.shape[: MAX_DIMENSIONS + 1]}")
    return size


def _tensor(info: TensorInfo, expected: int, frames: Sequence[zmq.Frame | bytes]) -> torch.Tensor:
    parts = [_buffer(frame) for frame in frames]
    size = sum(map(len, parts))
    if size != expected:
        raise MessageError(f"tensor of {info.dtype} {info.shape} needs {expected} bytes, its frames have {size}")
    dtype = DTYPES[info.dtype]
    data = parts[0] if len(parts) == 1 and not isinstance(parts[0], bytes) else bytearray().join(parts)
    try:
        return (
            torch.frombuffer(data, dtype=dtype).view(info.shape) if expected else torch.empty(info.shape, dtype=dtype)
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise MessageError(f"impossible shape {info.shape}: {first_line(error)}") from None
