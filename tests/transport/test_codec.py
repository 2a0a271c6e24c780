"""Encoding and decoding: what comes back, what is refused before it is looked at, and what text of a peer becomes."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest
import torch
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from splitsec.errors import MessageError, RangeError, RefusedError, plain_text
from splitsec.mpc.session.messages import session_codec
from splitsec.parties.messages import dealer_codec, server_codec
from splitsec.prediction.messages import contribution_codec
from splitsec.transport import Codec, Message, Refused, expect_shape
from splitsec.transport.codec import FRAME_BYTES, error_from
from splitsec.transport.tensor_specs import DTYPES, Tensors, TensorSpec


class Ping(Message, frozen=True):
    number: int
    tensors: ClassVar[Tensors] = Tensors(part=TensorSpec(tuple(DTYPES.values())))


class Bare(Message, frozen=True):
    number: int


codec: Codec[Any] = Codec(Ping | Bare | Refused)


def _sent(frames: list[Any]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_tensors_come_back_as_they_were(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 100).to(dtype)
    body, tensors = codec.decode(_sent(codec.encode(Ping(7), {"part": tensor})))
    assert body == Ping(7)
    assert tensors["part"].dtype == dtype
    assert torch.equal(tensors["part"], tensor)


def test_strided_tensors_travel_in_row_major_order() -> None:
    tensor = torch.arange(12).view(3, 4).t()
    _, tensors = codec.decode(_sent(codec.encode(Ping(0), {"part": tensor})))
    assert torch.equal(tensors["part"], tensor)


def test_received_memory_is_used_as_it_is() -> None:
    header, data = codec.encode(Ping(0), {"part": torch.arange(1000)})
    frame = zmq.Frame(bytes(data))
    _, tensors = codec.decode([zmq.Frame(header), frame])
    assert tensors["part"].data_ptr() == torch.frombuffer(frame.buffer, dtype=torch.int64).data_ptr()


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
        ([_header(PING, [])], r"Ping: 0 tensors, expected 1 \(part\)"),
        ([_header(PING, [None])], "Ping: part is missing"),
        ([_header(PING, [["float32", [0]]] * 2), b"", b""], r"Ping: 2 tensors, expected 1 \(part\)"),
        ([_header({"type": "Bare", "number": 1}, [["float32", [0]]]), b""], r"Bare: 1 tensors, expected 0 \(none\)"),
        ([b"\x82\xa4body\x81\xa4type\xa2\xff\xff"], "malformed"),
    ],
)
def test_malformed_messages_are_refused_with_a_reason(frames: list[bytes], reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        codec.decode(frames)


def test_control_the_right_message_is_read() -> None:
    body, tensors = codec.decode([_header(PING, [["float32", [1]]]), b"\0\0\0\0"])
    assert body == Ping(1)
    assert tensors["part"].tolist() == [0.0]
    assert codec.decode([_header({"type": "Bare", "number": 1}, [])]) == (Bare(1), {})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_arbitrary_bytes_never_do_worse_than_a_refusal(frames: list[bytes]) -> None:
    with pytest.raises(MessageError):
        codec.decode(frames)


def test_another_shape_than_is_expected_is_named() -> None:
    tensor = torch.zeros(2, 3)
    assert expect_shape(tensor, (None, 3), what="x") is tensor
    with pytest.raises(MessageError, match="x has shape 2x3, expected anyx4"):
        expect_shape(tensor, (None, 4), what="x")


def test_tensors_that_cannot_be_sent_are_named() -> None:
    with pytest.raises(MessageError, match=r"complex64 do not travel"):
        codec.encode(Ping(0), {"part": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(MessageError, match="Ping: part is missing"):
        codec.encode(Ping(0))
    with pytest.raises(MessageError, match="Ping: whole is not declared, part are"):
        codec.encode(Ping(0), {"part": torch.zeros(1), "whole": torch.zeros(1)})


CODECS = {"server": server_codec, "dealer": dealer_codec, "session": session_codec, "contribution": contribution_codec}


def nested(depth: int) -> bytes:
    """A header with an unknown field before the body's tag: arrays in arrays, `depth` deep."""

    def text(word: str) -> bytes:
        return bytes([0xA0 + len(word)]) + word.encode()

    inner = b"\x82" + text("zzz") + b"\x91" * depth + b"\xc0" + text("type") + text("Leave")
    return b"\x81" + text("body") + inner


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("depth", [1, 900, 1200, 100_000])
def test_nested_messages_are_malformed_and_nothing_worse(codec: Codec[Any], depth: int) -> None:
    with pytest.raises(MessageError):
        codec.decode([nested(depth)])


def test_control_a_bare_decoder_is_brought_down_by_nesting() -> None:
    with pytest.raises(RecursionError):
        server_codec._decoder.decode(nested(100_000))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_long_headers_are_refused_unread_and_not_sent(codec: Codec[Any]) -> None:
    with pytest.raises(MessageError, match="at most .* are read"):
        codec.decode([b"\x81" * (codec.header_bytes + 1)])


def test_who_says_too_much_is_told_before_anything_travels() -> None:
    class Long(Message, frozen=True):
        text: str

    with pytest.raises(MessageError, match="a Long message of .* longer than the 100 that may travel"):
        Codec[Any](Long, header_bytes=100).encode(Long("x" * 200))


def test_frames_that_do_not_add_up_are_refused() -> None:
    frames = [bytes(frame) for frame in codec.encode(Ping(0), {"part": torch.zeros(FRAME_BYTES // 4 + 7)})]
    assert len(frames) == 3
    assert codec.decode(frames)[1]["part"].numel() == FRAME_BYTES // 4 + 7
    for wrong in (frames[:2], [*frames, b""], [*frames[:2], frames[2] + b"x"], [frames[0], frames[1][1:], frames[2]]):
        with pytest.raises(MessageError):
            codec.decode(wrong)


def test_refusals_become_the_error_that_the_peer_named() -> None:
    assert isinstance(error_from(Refused("too big", "RangeError"), "server"), RangeError)
    for name in ("SystemExit", "annotations", "nonsense"):
        assert type(error_from(Refused("no", name), "server")).__name__ == "RefusedError"


FORGED = "no\n2026-01-01 00:00:00 ERROR splitsec: forged\r\x1b[2J\x07\u2028\u202eevil\u0085\x9b31m\ud800"


def test_text_of_a_peer_stays_one_line_and_moves_no_cursor() -> None:
    refused, _ = server_codec.decode([msgspec.msgpack.encode({"body": {"type": "Refused", "reason": FORGED[:-1]}})])
    assert isinstance(refused, Refused)
    for text in (refused.reason, str(error_from(refused, "server")), str(RefusedError(FORGED)), plain_text(FORGED)):
        assert text.isprintable()
        assert len(text.splitlines()) == 1
        assert "\\n2026-01-01" in text
        assert "\\x1b[2J" in text
        assert "\\u202e" in text
    assert not FORGED.isprintable()


def test_honest_text_stays_as_it_is() -> None:
    text = "café 数据 at /tmp/ü: the layer 'a.b' has 3 %, see \\x1b"
    assert plain_text(text) == text == str(RefusedError(text))


def test_long_text_is_cut() -> None:
    assert len(Refused("x" * 100_000).reason) == 1000
    assert len(str(RefusedError("y" * 1_000_000))) == 4000
    assert len(Refused("no", "E" * 10_000).error) == 64
