"""What a decoder refuses before it looks at it, and what text of a peer becomes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import torch

from splitsec.errors import MessageError, RefusedError, plain_text
from splitsec.mpc.linear import LinearMask
from splitsec.mpc.messages import JoinSession, session_codec
from splitsec.mpc.plan import MAX_ITEMS, check_plan
from splitsec.mpc.triples import Triple
from splitsec.mpc.truncation import Truncation
from splitsec.training.messages import (
    BeginRun,
    JoinRun,
    OpenSession,
    contribution_codec,
    dealer_codec,
    server_codec,
)
from splitsec.transport import Codec, Message, Refused, make_keys
from splitsec.transport.sockets import error_from

CODECS = {"server": server_codec, "dealer": dealer_codec, "session": session_codec, "contribution": contribution_codec}
RUN = "a" * 32


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


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (server_codec, OpenSession((1,) * 9, b"0" * 16)),
        (server_codec, OpenSession((1 << 31,), b"0" * 16)),
        (server_codec, OpenSession((-1,), b"0" * 16)),
        (server_codec, OpenSession((1,), b"0" * 65)),
        (dealer_codec, BeginRun("A" * 32, RUN, True)),
        (dealer_codec, BeginRun(RUN + "\n", RUN, True)),
        (dealer_codec, BeginRun(RUN + "0", RUN, True)),
        (dealer_codec, JoinRun(RUN, RUN, -1)),
        (dealer_codec, JoinRun(RUN, RUN, 1 << 31)),
        (dealer_codec, JoinSession(RUN, 0, "client\x1b[2J", ())),
        (dealer_codec, JoinSession(RUN, 0, "client-1", (Truncation((1,) * 9, 16),))),
    ],
)
def test_fields_that_no_party_sends_are_malformed(codec: Codec[Any], body: Any) -> None:
    with pytest.raises(MessageError, match="malformed"):
        codec.decode([bytes(frame) for frame in codec.encode(body)])


def test_control_the_same_fields_in_range_are_read() -> None:
    for codec, body in (
        (server_codec, OpenSession((1,) * 8, b"0" * 16)),
        (dealer_codec, BeginRun(RUN, "", True)),
        (dealer_codec, JoinSession(RUN, 0, "client-1", (Truncation((1,) * 8, 16),))),
    ):
        assert codec.decode([bytes(frame) for frame in codec.encode(body)])[0] == body


CONV = LinearMask(1, "conv2d", (1, 1, 5, 5), (1, 1, 3, 3))


@pytest.mark.parametrize(
    "plan",
    [
        # These two took 20 s of bignum products and 9 s of trial convolutions.
        (Truncation((2**31 - 1,) * 100_000, 16),),
        (CONV,) * 200_000,
        (CONV,) * (MAX_ITEMS + 1),
        (Truncation((2**31 - 1,) * 8, 16),),
        (LinearMask(1, "linear", (2**30, 2**30), (2**30, 2**30)),),
        (LinearMask(1, "conv2d", (1, 3, 8, 8), (4, 2, 3, 3)),),
        (LinearMask(1, "conv2d", (1, 2, 8, 8), (3, 1, 3, 3), groups=2),),
        (LinearMask(1, "conv2d", (1, 1, 2, 2), (1, 1, 3, 3)),),
        (LinearMask(1, "linear", (3,), (4,)),),
        (LinearMask(1, "scale", (2, 3), (2, 2, 3)),),
        (LinearMask(1, "scale", (2, 3), (2,)),),
    ],
)
def test_plans_that_no_program_makes_are_refused_without_a_tensor(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch, "conv2d", None)
    with pytest.raises(MessageError, match="a plan"):
        check_plan(plan)


def test_the_largest_plan_is_checked_without_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch, "conv2d", None)
    check_plan(tuple(LinearMask(layer, "conv2d", (1, 1, 5, 5), (1, 1, 3, 3)) for layer in range(MAX_ITEMS)))


@pytest.mark.parametrize("op", ["mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"])
def test_arithmetic_agrees_with_torch_about_triples(op: Any) -> None:
    chosen = Random(7)
    right = 0
    for _ in range(400):
        dims = 1 if op.endswith("1d") else 2
        plain = op in ("mul", "matmul")
        count = [chosen.randrange(1, 4) for _ in range(2)] if plain else [dims + 2] * 2
        left, other = (tuple(chosen.choice((1, 2, 2, 4)) for _ in range(one)) for one in count)
        if not plain:
            left = (*left[:2], *(size + 4 for size in left[2:]))
        options = [tuple(chosen.choice(sizes) for _ in range(dims)) for sizes in ((1, 2), (0, 1), (1, 2))]
        item = Triple(op, left, other, *options, groups=chosen.choice((1, 1, 2)))
        try:
            tried = item._apply(*(torch.zeros(shape) for shape in (left, other)))
            expected = [tuple(tried.shape)]
        except RuntimeError:
            expected = None
        try:
            item.check()
            found: Any = item.correction_shapes()
        except ValueError:
            found = None
        assert found == expected, item
        right += found is not None
    assert right > 20


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_arithmetic_agrees_with_torch_about_convolutions(
    groups: int, padding: tuple[int, int], stride: tuple[int, int]
) -> None:
    for size in (1, 2, 5, 9):
        for channels in (1, 2, 4):
            for wide in (1, 2):
                item = LinearMask(
                    1, "conv2d", (1, channels, size, size), (2, wide, 3, 3), stride, padding, groups=groups
                )
                try:
                    right = tuple(item.apply(*map(torch.zeros, (item.input, item.weight))).shape) == item.output
                except RuntimeError:
                    right = False
                try:
                    item.check()
                    ours = True
                except ValueError:
                    ours = False
                assert ours == right, item


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


FLOODED = """
import sys, time
from pathlib import Path
import torch
import zmq
from splitsec.mpc.messages import Done
from splitsec.training.messages import Leave, server_codec
from splitsec.transport import Hub, Wire, load_key_pair, load_public_keys

keys, asks = Path(sys.argv[1]), sys.argv[2] == "asks"
flooder, party = Wire(load_key_pair(keys, "a")), Wire(load_key_pair(keys, "server"))
make = Wire._socket

def socket(self, kind):
    made = make(self, kind)
    if asks:
        made.setsockopt(zmq.HEARTBEAT_IVL, 1500)
    return made

Wire._socket = socket
hub = Hub(party, "tcp://127.0.0.1:*", {"a": load_public_keys(keys)["a"]}, server_codec)
hostile = flooder.connect(zmq.DEALER, hub.address, load_public_keys(keys)["server"])
hostile.setsockopt(zmq.SNDTIMEO, 2000)
frames = server_codec.encode(Leave())
hostile.send_multipart(frames)
incoming = hub.receive(5)
# Answers that it never reads, so that its end is a reset.
for _ in range(2000):
    hub.send(incoming.sender, Done(), [torch.zeros(1000)])
for _ in range(3000):
    try:
        hostile.send_multipart(frames, zmq.NOBLOCK)
    except zmq.Again:
        time.sleep(0.001)
time.sleep(0.3)
hostile.close(0)
flooder.context.destroy(0)
# The party is busy, and then takes what is there.
time.sleep(3)
while hub.receive(0.2) is not None:
    pass
print("alive")
"""


@pytest.mark.parametrize("who", ["party", "asks"])
def test_who_floods_a_party_and_goes_does_not_end_it(tmp_path: Path, who: str) -> None:
    make_keys(tmp_path, ["a", "server"])
    done = subprocess.run(
        [sys.executable, "-c", FLOODED, str(tmp_path), who], check=False, capture_output=True, text=True, timeout=100
    )
    if who == "party":
        assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    elif done.returncode == 0:
        pytest.skip("this ZeroMQ does not abort where the bound end asks")
    else:
        # The control: the bound end asks. A later ZeroMQ may have mended that.
        assert "_io_error" in done.stderr
