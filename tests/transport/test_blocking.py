"""Every send has a time limit, and nothing that was sent is lost without a word."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from splitsec.errors import AuthenticationError, MessageError, PartyTimeoutError
from splitsec.transport import Codec, Hub, KeyPair, Link, Message, Peer, Refused, Wire, load_key_pair, make_keys
from splitsec.transport import hub as hub_module
from splitsec.transport.codec import FRAME_BYTES
from splitsec.transport.sockets import HIGH_WATER


class Ping(Message, frozen=True):
    number: int


codec: Codec[Any] = Codec(Ping | Refused)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, KeyPair]:
    names = ["server", "client-1", "stranger"]
    make_keys(tmp_path, names)
    return {name: load_key_pair(tmp_path, name) for name in names}


@pytest.fixture
def hub(keys: dict[str, KeyPair]) -> Iterator[Hub[Any]]:
    with Wire(keys["server"]) as wire:
        hub: Hub[Any] = Hub(wire, "tcp://127.0.0.1:*", {"client-1": keys["client-1"].public}, codec)
        yield hub
        hub.close()


def _link(wire: Wire, address: str, keys: dict[str, KeyPair], timeout: float = 20.0) -> Link[Any]:
    return Link(wire, address, peer="server", peer_key=keys["server"].public, codec=codec, timeout=timeout)


def _within(seconds: float, action: Callable[[], None]) -> BaseException | None:
    """What an action raised in a thread of its own; fails where it goes on for ever."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it blocks"
    return raised[0] if raised else None


def test_a_send_after_a_refused_handshake_says_so_at_once(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    """Which the peer's answer does as well, where the handshake ends after the first send."""
    with Wire(keys["stranger"]) as wire:
        link = _link(wire, hub.address, keys, timeout=50.0)

        def until_refused() -> None:
            for number in range(10_000):
                link.send(Ping(number))
                time.sleep(0.001)

        began = time.monotonic()
        for _ in range(3):
            assert "refused our key" in str(_within(40, until_refused))
        assert isinstance(_within(40, until_refused), AuthenticationError)
        assert isinstance(_within(40, link.receive), AuthenticationError)
        print(f"{time.monotonic() - began:.2f} s")
        link.close()


def test_control_a_bare_socket_blocks_after_a_refused_handshake(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    with Wire(keys["stranger"]) as wire:
        socket = wire.connect(zmq.DEALER, hub.address, keys["server"].public)
        socket.setsockopt(zmq.SNDTIMEO, 500)

        def many() -> None:
            for _ in range(100_000):
                socket.send(b"x")

        with pytest.raises(zmq.Again):
            many()
        socket.close(0)


def test_who_takes_nothing_is_named_with_its_address_and_the_time(keys: dict[str, KeyPair]) -> None:
    with Wire(keys["client-1"]) as wire:
        link = _link(wire, "tcp://127.0.0.1:9", keys, timeout=0.3)
        wire.context.setsockopt(zmq.LINGER, 0)

        def many() -> None:
            for number in range(HIGH_WATER + 2):
                link.send(Ping(number))

        error = _within(30, many)
        assert isinstance(error, PartyTimeoutError)
        assert "server at tcp://127.0.0.1:9 took no message for 0.3 s" in str(error)
        link._socket.setsockopt(zmq.LINGER, 0)
        link.close()


def test_a_slow_receiver_gets_everything(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    """More messages than both ends' sockets hold."""
    count = 3 * HIGH_WATER + 100
    part = torch.zeros(1 << 13, dtype=torch.int64)
    with Wire(keys["client-1"]) as wire:
        link = _link(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        for number in range(count):
            hub.send(incoming.sender, Ping(number), [part])
        stop = threading.Event()

        def pump() -> None:
            while not stop.is_set():
                hub.receive(0.05)

        time.sleep(0.3)
        thread = threading.Thread(target=pump)
        thread.start()
        assert [link.receive()[0].number for _ in range(count)] == list(range(count))
        stop.set()
        thread.join()
        assert hub.traffic["client-1"].messages_sent == count
        link.close()


def test_control_without_being_told_a_hub_loses_messages(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    hub._socket.setsockopt(zmq.ROUTER_MANDATORY, 0)
    with Wire(keys["client-1"]) as wire:
        link = _link(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        # Beyond what the sockets of the kernel hold, too.
        count, part = 3 * HIGH_WATER, torch.zeros(1 << 15, dtype=torch.int64)
        for number in range(count):
            hub.send(incoming.sender, Ping(number), [part])
        time.sleep(0.5)

        def all_of_them() -> None:
            for _ in range(count):
                link.receive(1.0)

        with pytest.raises(PartyTimeoutError):
            all_of_them()
        link.close()


def test_who_never_reads_costs_so_much_and_no_more(
    hub: Hub[Any], keys: dict[str, KeyPair], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "MOST_WAITING", 10)
    with Wire(keys["client-1"]) as wire:
        link = _link(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        part = torch.zeros(1 << 17, dtype=torch.int64)
        for number in range(3 * HIGH_WATER):
            hub.send(incoming.sender, Ping(number), [part])
        assert all(len(one.messages) <= 10 for one in hub._waiting.values())
        assert "11 messages for client-1 are dropped: 10 messages wait for it" in caplog.text
        monkeypatch.setattr(hub_module, "WAIT_SECONDS", 0.0)
        hub.send(incoming.sender, Ping(1), [part])
        hub.receive(0.1)
        assert "it took nothing for 0 s" in caplog.text
        link._socket.setsockopt(zmq.LINGER, 0)
        link.close()


def test_a_message_for_one_that_is_gone_is_logged(
    hub: Hub[Any], keys: dict[str, KeyPair], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with Wire(keys["client-1"]) as wire:
        link = _link(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        link.close()
    for _ in range(200):
        hub.send(incoming.sender, Ping(1))
        hub.receive(0.05)
        if "a message for client-1 is dropped: its connection is gone" in caplog.text:
            return
    raise AssertionError("nothing is logged")


@pytest.mark.parametrize("elements", [FRAME_BYTES // 8, FRAME_BYTES // 8 + 1, 2 * FRAME_BYTES // 8 + 5])
def test_large_tensors_travel_in_several_frames(hub: Hub[Any], keys: dict[str, KeyPair], elements: int) -> None:
    tensors = [torch.arange(elements), torch.arange(3), torch.zeros(0), torch.arange(elements).flip(0)]
    assert max(len(frame) for frame in codec.encode(Ping(0), tensors)) <= FRAME_BYTES
    with Wire(keys["client-1"]) as wire:
        link = _link(wire, hub.address, keys)
        link.send(Ping(0), tensors)
        incoming = hub.receive(20)
        assert incoming is not None
        assert all(torch.equal(one, two) for one, two in zip(incoming.tensors, tensors, strict=True))
        link.close()


def test_frames_that_do_not_add_up_are_refused() -> None:
    frames = [bytes(frame) for frame in codec.encode(Ping(0), [torch.zeros(FRAME_BYTES // 4 + 7)])]
    assert len(frames) == 3
    assert codec.decode(frames)[1][0].numel() == FRAME_BYTES // 4 + 7
    for wrong in (frames[:2], [*frames, b""], [*frames[:2], frames[2] + b"x"], [frames[0], frames[1][1:], frames[2]]):
        with pytest.raises(MessageError):
            codec.decode(wrong)


def test_large_raw_values_travel_in_several_frames(keys: dict[str, KeyPair]) -> None:
    values = [torch.arange(FRAME_BYTES // 8 + 9), torch.arange(5)]
    with Wire(keys["server"]) as wire, Wire(keys["client-1"]) as other:
        wire.admit("x", {"client-1": keys["client-1"].public})
        bound, address = wire.bind(zmq.DEALER, "tcp://127.0.0.1:*", "x")
        connected = other.connect(zmq.DEALER, address, keys["server"].public)
        here = Peer(bound, peer="client-1", codec=codec, timeout=20)
        there = Peer(connected, peer="server", codec=codec, timeout=20, address=address)
        there.send_raw(7, values)
        for got, sent in zip(here.receive_raw(7, values), values, strict=True):
            assert torch.equal(got, sent)
        there.send_raw(8, values)
        with pytest.raises(MessageError, match="for step 8; expected"):
            here.receive_raw(9, values)
        here.close()
        there.timeout = 0.2
        connected.setsockopt(zmq.RCVTIMEO, 200)
        with pytest.raises(
            PartyTimeoutError, match=f"server fell silent for 0.2 s in the middle of a session at {address}"
        ):
            there.receive()
        there.close()
