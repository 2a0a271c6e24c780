"""Links: a peer that is not there, is another or takes nothing is named, and no send blocks for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import zmq
from support.links import Ping, link_to

from splitsec.errors import (
    AuthenticationError,
    PartyTimeoutError,
)
from splitsec.transport import Hub, KeyPair, Wire
from splitsec.transport.keys import fingerprint
from splitsec.transport.sockets import HIGH_WATER


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
        link = link_to(wire, hub.address, keys, timeout=50.0)

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
        link = link_to(wire, "tcp://127.0.0.1:9", keys, timeout=0.3)
        wire.context.setsockopt(zmq.LINGER, 0)

        def many() -> None:
            for number in range(HIGH_WATER + 2):
                link.send(Ping(number))

        error = _within(30, many)
        assert isinstance(error, PartyTimeoutError)
        assert "server at tcp://127.0.0.1:9 took no message for 0.3 s" in str(error)
        link._socket.setsockopt(zmq.LINGER, 0)
        link.close()


def test_a_wrong_server_key_is_named_at_once(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    with Wire(keys["client-1"]) as wire:
        link = link_to(wire, hub.address, keys, peer_key=keys["stranger"].public, timeout=30)
        link.send(Ping(0))
        mark = fingerprint(keys["stranger"].public)
        with pytest.raises(
            AuthenticationError, match=rf"another key than the one .* for server \(fingerprint {mark}\)"
        ):
            link.receive()
        # It stays so, for whoever asks or sends again.
        with pytest.raises(AuthenticationError, match="another key"):
            link.receive()


def test_a_silent_party_is_named(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    with Wire(keys["client-1"]) as wire:
        link = link_to(wire, hub.address, keys)
        with pytest.raises(PartyTimeoutError, match="server at .* did not answer within 0.3 s"):
            link.request(Ping(0), timeout=0.3)
