from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitsec.errors import MessageError
from splitsec.transport import Codec, Message, Refused, expect_tensor
from splitsec.transport.codec import DTYPES


class Ping(Message, frozen=True):
    number: int


codec: Codec[Any] = Codec(Ping | Refused)


def _sent(frames: list[Any]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_tensors_come_back_as_they_were(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 100).to(dtype)
    body, (back,) = codec.decode(_sent(codec.encode(Ping(7), [tensor])))
    assert body == Ping(7)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_strided_tensors_travel_in_row_major_order() -> None:
    tensor = torch.arange(12).view(3, 4).t()
    _, (back,) = codec.decode(_sent(codec.encode(Ping(0), [tensor])))
    assert torch.equal(back, tensor)


def test_received_memory_is_used_as_it_is() -> None:
    import zmq

    header, data = codec.encode(Ping(0), [torch.arange(1000)])
    frame = zmq.Frame(bytes(data))
    _, (tensor,) = codec.decode([zmq.Frame(header), frame])
    assert tensor.data_ptr() == torch.frombuffer(frame.buffer, dtype=torch.int64).data_ptr()


def _header(body: object, tensors: object) -> bytes:
    return msgspec.msgpack.encode({"body": body, "tensors": tensors})


PING = {"type": "Ping", "number": 1}


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "empty"),
        ([b""], "malformed"),
        ([b"\x80\x04\x95garbage"], "malformed"),
        ([_header({"type": "Nonsense"}, [])], "malformed"),
        ([_header({"type": "Ping", "number": "x"}, [])], "malformed"),
        ([_header({"type": "Ping", "number": 1, "extra": 2}, [])], "malformed"),
        ([_header(PING, [["float32", [2]]])], "names 1 tensors in 1 frames, message has 0"),
        ([_header(PING, []), b"1234"], "names 0 tensors in 0 frames, message has 1"),
        ([_header(PING, [["object", [1]]]), b"1234"], "unknown dtype 'object'"),
        ([_header(PING, [["float32", [2]]]), b"1234"], "needs 8 bytes, its frames have 4"),
        ([_header(PING, [["float32", [-1]]]), b"1234"], "impossible shape"),
        ([_header(PING, [["float32", [1] * 20]]), b"1234"], "impossible shape"),
        ([_header(PING, [["float32", [2**40, 2**40]]]), b"1234"], "impossible shape"),
        ([_header(PING, [["float32", [2**63, 0]]]), b""], "impossible shape"),
        ([_header(PING, [["float32", [2**30, 2**30, 2**30, 0]]]), b""], "impossible shape"),
        ([b"\x82\xa4body\x81\xa4type\xa2\xff\xff"], "malformed"),
    ],
)
def test_malformed_messages_are_refused_with_a_reason(frames: list[bytes], reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        codec.decode(frames)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_arbitrary_bytes_never_do_worse_than_a_refusal(frames: list[bytes]) -> None:
    with pytest.raises(MessageError):
        codec.decode(frames)


def test_expected_tensors() -> None:
    tensor = torch.zeros(2, 3)
    assert expect_tensor(tensor, what="x", dtype=torch.float32, shape=(None, 3)) is tensor
    with pytest.raises(MessageError, match="x has dtype torch.float32, expected torch.int64"):
        expect_tensor(tensor, what="x", dtype=torch.int64, shape=(2, 3))
    with pytest.raises(MessageError, match="x has shape 2x3, expected anyx4"):
        expect_tensor(tensor, what="x", dtype=torch.float32, shape=(None, 4))


def test_dtypes_that_do_not_travel_are_named() -> None:
    with pytest.raises(MessageError, match=r"complex64 do not travel"):
        codec.encode(Ping(0), [torch.zeros(1, dtype=torch.complex64)])
