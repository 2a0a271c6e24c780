"""Hubs: senders are known by their keys, and no message is lost without a line in the log."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import pytest
import torch
import zmq
from support.links import Ping, codec, link_to

from splitsec.errors import (
    AuthenticationError,
    MessageError,
    PartyTimeoutError,
)
from splitsec.transport import Hub, KeyPair, Wire
from splitsec.transport import hub as hub_module
from splitsec.transport.codec import FRAME_BYTES
from splitsec.transport.keys import fingerprint
from splitsec.transport.sockets import HIGH_WATER


def test_who_sends_is_known_from_the_key(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    with Wire(keys["client-1"]) as one, Wire(keys["client-2"]) as two:
        links = {"client-1": link_to(one, hub.address, keys), "client-2": link_to(two, hub.address, keys)}
        for number, link in enumerate(links.values()):
            link.send(Ping(number), {"parts": [torch.full((2,), number)]})
        seen = {}
        for _ in links:
            incoming = hub.receive(5)
            assert incoming is not None
            seen[incoming.sender.name] = incoming
            hub.send(incoming.sender, Ping(incoming.body.number + 10))
        for number, (name, link) in enumerate(links.items()):
            assert seen[name].body == Ping(number)
            assert seen[name].tensors["parts"][0].tolist() == [number, number]
            assert link.receive()[0] == Ping(number + 10)
            assert link.traffic.bytes_sent == hub.traffic[name].bytes_received > 0
            assert link.traffic.bytes_received == hub.traffic[name].bytes_sent > 0


def test_an_unknown_key_is_refused_and_logged_and_others_are_served(
    hub: Hub[Any], keys: dict[str, KeyPair], caplog: pytest.LogCaptureFixture
) -> None:
    with Wire(keys["stranger"]) as stranger, Wire(keys["client-1"]) as known:
        link = link_to(stranger, hub.address, keys)
        link.send(Ping(0))
        with pytest.raises(AuthenticationError, match="server at tcp://.* refused our key"):
            link.receive()
        good = link_to(known, hub.address, keys)
        good.send(Ping(1))
        incoming = hub.receive(5)
        assert incoming is not None
        assert incoming.sender.name == "client-1"
    assert f"refused a connection: unknown key (fingerprint {fingerprint(keys['stranger'].public)})" in caplog.text
    assert keys["stranger"].secret.decode() not in caplog.text


def test_a_malformed_message_is_refused_with_a_reason_and_the_hub_stays_up(
    hub: Hub[Any], keys: dict[str, KeyPair]
) -> None:
    answers = []

    def client() -> None:
        with Wire(keys["client-1"]) as wire:
            link = link_to(wire, hub.address, keys)
            for frames in (
                [b"rubbish"],
                [msgspec.msgpack.encode({"body": {"type": "Ping", "number": 1}, "tensors": [["float32", [9]]]}), b"x"],
                [b"a", b"b", b"c"],
            ):
                link._socket.send_multipart(frames)
                try:
                    link.receive()
                except MessageError as error:
                    answers.append(str(error))
            link.send(Ping(3))
            time.sleep(0.2)

    thread = threading.Thread(target=client)
    thread.start()
    incoming = hub.receive(5)
    assert incoming is not None
    assert incoming.body == Ping(3)
    thread.join()
    assert len(answers) == 3
    assert all(text.startswith("server: ") for text in answers)


def test_a_slow_receiver_gets_everything(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    """More messages than both ends' sockets hold."""
    count = 3 * HIGH_WATER + 100
    part = torch.zeros(1 << 13, dtype=torch.int64)
    with Wire(keys["client-1"]) as wire:
        link = link_to(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        for number in range(count):
            hub.send(incoming.sender, Ping(number), {"parts": [part]})
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
        link = link_to(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        # Beyond what the sockets of the kernel hold, too.
        count, part = 3 * HIGH_WATER, torch.zeros(1 << 15, dtype=torch.int64)
        for number in range(count):
            hub.send(incoming.sender, Ping(number), {"parts": [part]})
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
        link = link_to(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        part = torch.zeros(1 << 17, dtype=torch.int64)
        for number in range(3 * HIGH_WATER):
            hub.send(incoming.sender, Ping(number), {"parts": [part]})
        assert all(len(one.messages) <= 10 for one in hub._waiting.values())
        assert "11 messages for client-1 are dropped: 10 messages wait for it" in caplog.text
        monkeypatch.setattr(hub_module, "WAIT_SECONDS", 0.0)
        hub.send(incoming.sender, Ping(1), {"parts": [part]})
        hub.receive(0.1)
        assert "it took nothing for 0 s" in caplog.text
        link._socket.setsockopt(zmq.LINGER, 0)
        link.close()


def test_a_message_for_a_party_that_is_gone_is_logged(
    hub: Hub[Any], keys: dict[str, KeyPair], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with Wire(keys["client-1"]) as wire:
        link = link_to(wire, hub.address, keys)
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


def test_an_end_that_is_heard_of_late_is_waited_for_and_a_living_connection_is_not_gone(
    hub: Hub[Any], keys: dict[str, KeyPair]
) -> None:
    with Wire(keys["client-1"]) as wire:
        link = link_to(wire, hub.address, keys)
        link.send(Ping(0))
        incoming = hub.receive(20)
        assert incoming is not None
        # The control: a connection that lives is there at the end of the time as well.
        assert not hub.has_ended(incoming.sender, Ping(1), within=0.1)
        closing = threading.Timer(0.1, link.close)
        closing.start()
        assert hub.has_ended(incoming.sender, Ping(1), within=20)
        closing.join()


@pytest.mark.parametrize("elements", [FRAME_BYTES // 8, FRAME_BYTES // 8 + 1, 2 * FRAME_BYTES // 8 + 5])
def test_large_tensors_travel_in_several_frames(hub: Hub[Any], keys: dict[str, KeyPair], elements: int) -> None:
    tensors = [torch.arange(elements), torch.arange(3), torch.zeros(0), torch.arange(elements).flip(0)]
    assert max(len(frame) for frame in codec.encode(Ping(0), {"parts": tensors})) <= FRAME_BYTES
    with Wire(keys["client-1"]) as wire:
        link = link_to(wire, hub.address, keys)
        link.send(Ping(0), {"parts": tensors})
        incoming = hub.receive(20)
        assert incoming is not None
        assert all(torch.equal(tensor, two) for tensor, two in zip(incoming.tensors["parts"], tensors, strict=True))
        link.close()
