"""What somebody who reaches a port without a key can hold."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import zmq

from splitsec.transport import Codec, Hub, KeyPair, Link, Message, Refused, Wire, load_key_pair, make_keys
from splitsec.transport import admission as admission_module
from splitsec.transport.admission import MOST_UNKNOWN
from splitsec.transport.codec import FRAME_BYTES

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32


class Ping(Message, frozen=True):
    number: int


codec: Codec[Any] = Codec(Ping | Refused)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, KeyPair]:
    make_keys(tmp_path, ["server", "client-1"])
    return {name: load_key_pair(tmp_path, name) for name in ("server", "client-1")}


def _knock(address: str) -> socket.socket:
    parts = urlsplit(address)
    assert parts.port is not None
    return socket.create_connection((str(parts.hostname), parts.port), timeout=20)


def _open(knocking: list[socket.socket]) -> int:
    """How many of these connections the other end has not closed."""
    count = 0
    for one in knocking:
        one.setblocking(False)
        try:
            count += bool(one.recv(1 << 16))
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def _answers(hub: Hub[Any], link: Link[Any], number: int) -> bool:
    link.send(Ping(number))
    incoming = hub.receive(20)
    assert incoming is not None
    hub.send(incoming.sender, Ping(number))
    return bool(link.receive()[0] == Ping(number))


@pytest.mark.parametrize("most", [MOST_UNKNOWN, 1 << 20], ids=["limited", "control without a limit"])
def test_strangers_may_have_a_limited_number_of_connections(
    keys: dict[str, KeyPair], most: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    defaults = admission_module.Admission.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "most", most)
    allowed = {"client-1": keys["client-1"].public}
    with Wire(keys["server"]) as wire, Wire(keys["client-1"]) as other:
        hub: Hub[Any] = Hub(wire, "tcp://127.0.0.1:*", allowed, codec)
        link: Link[Any] = Link(
            other, hub.address, peer="server", peer_key=keys["server"].public, codec=codec, timeout=20
        )
        assert _answers(hub, link, 1)
        knocking = []
        for number in range(MOST_UNKNOWN + 60):
            knocking.append(_knock(hub.address))
            if number % 2:
                knocking[-1].sendall(GREETING)
        left = len(knocking)
        for _ in range(100):
            left = _open(knocking)
            if left <= most and most == MOST_UNKNOWN:
                break
            time.sleep(0.01 if most > MOST_UNKNOWN else 0.05)
        assert left <= MOST_UNKNOWN + 1 if most == MOST_UNKNOWN else left == len(knocking)
        # Who had shown its key is still there, and another comes in.
        assert _answers(hub, link, 2)
        late: Link[Any] = Link(
            other, hub.address, peer="server", peer_key=keys["server"].public, codec=codec, timeout=20
        )
        assert _answers(hub, late, 3)
        assert ("had shown no key" in caplog.text) == (most == MOST_UNKNOWN)
        for one in knocking:
            one.close()
        for each in (link, late):
            each.close()
        hub.close()


@pytest.mark.parametrize(("size", "taken"), [(FRAME_BYTES + 4097, False), (FRAME_BYTES, True)])
def test_a_stranger_sends_one_frame_of_limited_size(keys: dict[str, KeyPair], size: int, taken: bool) -> None:
    """A frame that announces more is the connection's end, before memory is set aside for it."""
    with Wire(keys["server"]) as wire:
        hub: Hub[Any] = Hub(wire, "tcp://127.0.0.1:*", {}, codec)
        with _knock(hub.address) as knocking:
            knocking.sendall(GREETING)
            got = 0
            while got < 64:
                got += len(knocking.recv(64))
            knocking.sendall(b"\x06" + size.to_bytes(8, "big") + b"x" * 100)
            knocking.settimeout(1.0)
            try:
                closed = knocking.recv(10) == b""
            except ConnectionResetError:
                closed = True
            except TimeoutError:
                closed = False
            assert closed is not taken
        hub.close()


@pytest.mark.parametrize("mechanism", ["unknown key", "no key", "a password", "garbage"])
def test_nobody_without_a_known_key_is_heard(keys: dict[str, KeyPair], mechanism: str) -> None:
    context = zmq.Context()
    with Wire(keys["server"]) as wire, Wire(keys["client-1"]) as other:
        hub: Hub[Any] = Hub(wire, "tcp://127.0.0.1:*", {"client-1": keys["client-1"].public}, codec)
        stranger = context.socket(zmq.DEALER)
        if mechanism == "unknown key":
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey = keys["server"].public
        elif mechanism == "a password":
            stranger.plain_username, stranger.plain_password = b"client-1", b"x"
        stranger.connect(hub.address)
        for frame in codec.encode(Ping(1)):
            stranger.send(frame, zmq.NOBLOCK)
        chosen = random.Random(5)
        for _ in range(100 if mechanism == "garbage" else 0):
            with _knock(hub.address) as knocking:
                knocking.sendall(chosen.randbytes(chosen.choice([1, 10, 64, 70, 1000, 20_000])))
        assert hub.receive(0.5) is None
        # The control: the same message of one whose key is known.
        link: Link[Any] = Link(
            other, hub.address, peer="server", peer_key=keys["server"].public, codec=codec, timeout=20
        )
        assert _answers(hub, link, 3)
        assert not stranger.poll(0)
        link.close()
        hub.close()
    context.destroy(linger=0)
