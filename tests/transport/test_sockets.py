import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import zmq

from splitsec.errors import AddressError, AuthenticationError, MessageError, PartyTimeoutError, RangeError
from splitsec.transport import Codec, Hub, KeyPair, Link, Message, Refused, Wire, load_key_pair, make_keys
from splitsec.transport.keys import fingerprint
from splitsec.transport.sockets import error_from


class Ping(Message, frozen=True):
    number: int


codec: Codec[Any] = Codec(Ping | Refused)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, KeyPair]:
    names = ["server", "client-1", "client-2", "stranger"]
    make_keys(tmp_path, names)
    return {name: load_key_pair(tmp_path, name) for name in names}


@pytest.fixture
def hub(keys: dict[str, KeyPair]) -> Iterator[Hub[Any]]:
    with Wire(keys["server"]) as wire:
        allowed = {name: keys[name].public for name in ("client-1", "client-2")}
        hub: Hub[Any] = Hub(wire, "tcp://127.0.0.1:*", allowed, codec)
        yield hub
        hub.close()


def _link(wire: Wire, hub: Hub[Any], keys: dict[str, KeyPair], **options: Any) -> Link[Any]:
    settings = {"peer": "server", "peer_key": keys["server"].public, "codec": codec, "timeout": 60.0, **options}
    return Link(wire, hub.address, **settings)


def test_who_sends_is_known_from_the_key(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    with Wire(keys["client-1"]) as one, Wire(keys["client-2"]) as two:
        links = {"client-1": _link(one, hub, keys), "client-2": _link(two, hub, keys)}
        for number, link in enumerate(links.values()):
            link.send(Ping(number), [torch.full((2,), number)])
        seen = {}
        for _ in links:
            incoming = hub.receive(5)
            assert incoming is not None
            seen[incoming.sender.name] = incoming
            hub.send(incoming.sender, Ping(incoming.body.number + 10))
        for number, (name, link) in enumerate(links.items()):
            assert seen[name].body == Ping(number)
            assert seen[name].tensors[0].tolist() == [number, number]
            assert link.receive()[0] == Ping(number + 10)
            assert link.traffic.bytes_sent == hub.traffic[name].bytes_received > 0
            assert link.traffic.bytes_received == hub.traffic[name].bytes_sent > 0


def test_an_unknown_key_is_refused_and_logged_and_others_are_served(
    hub: Hub[Any], keys: dict[str, KeyPair], caplog: pytest.LogCaptureFixture
) -> None:
    with Wire(keys["stranger"]) as stranger, Wire(keys["client-1"]) as known:
        link = _link(stranger, hub, keys)
        link.send(Ping(0))
        with pytest.raises(AuthenticationError, match="server at tcp://.* refused our key"):
            link.receive()
        good = _link(known, hub, keys)
        good.send(Ping(1))
        incoming = hub.receive(5)
        assert incoming is not None
        assert incoming.sender.name == "client-1"
    assert f"refused a connection: unknown key (fingerprint {fingerprint(keys['stranger'].public)})" in caplog.text
    assert keys["stranger"].secret.decode() not in caplog.text


def test_a_wrong_server_key_is_named_at_once(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    with Wire(keys["client-1"]) as wire:
        link = _link(wire, hub, keys, peer_key=keys["stranger"].public, timeout=30)
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
        link = _link(wire, hub, keys)
        with pytest.raises(PartyTimeoutError, match="server at .* did not answer within 0.3 s"):
            link.request(Ping(0), timeout=0.3)


def test_a_malformed_message_is_refused_with_a_reason_and_the_hub_stays_up(
    hub: Hub[Any], keys: dict[str, KeyPair]
) -> None:
    answers = []

    def client() -> None:
        with Wire(keys["client-1"]) as wire:
            link = _link(wire, hub, keys)
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


def test_a_port_in_use_is_named(hub: Hub[Any], keys: dict[str, KeyPair]) -> None:
    with Wire(keys["client-1"]) as wire, pytest.raises(AddressError, match="the port is in use"):
        Hub(wire, hub.address, {}, codec)


@pytest.mark.parametrize("address", ["tcp://nowhere", "nonsense", "tcp://256.1.1.1:80"])
def test_an_impossible_address_is_named(keys: dict[str, KeyPair], address: str) -> None:
    with Wire(keys["server"]) as wire, pytest.raises(AddressError, match=re.escape(address)):
        Hub(wire, address, {}, codec)


def test_nothing_is_readable_on_the_wire(keys: dict[str, KeyPair], tmp_path: Path) -> None:
    """A relay between the two ends sees no payload; the control, the same without CURVE, shows it."""
    marker = b"activation-of-a-patient" * 50
    assert marker[:23] not in _relayed(keys, marker, curve=True)
    assert marker[:23] in _relayed(keys, marker, curve=False)


def _relayed(keys: dict[str, KeyPair], payload: bytes, *, curve: bool) -> bytes:
    import socket

    seen = bytearray()
    context = zmq.Context()
    with Wire(keys["server"]) as wire:
        if curve:
            wire.admit("relay", {"client-1": keys["client-1"].public})
            receiver, address = wire.bind(zmq.DEALER, "tcp://127.0.0.1:*", "relay")
        else:
            receiver = wire.context.socket(zmq.DEALER)
            receiver.bind("tcp://127.0.0.1:*")
            address = receiver.getsockopt_string(zmq.LAST_ENDPOINT)
        listener = socket.create_server(("127.0.0.1", 0))
        upstream = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))

        def pump(source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    seen.extend(data)
                    sink.sendall(data)
            except OSError:
                pass

        sender = context.socket(zmq.DEALER)
        if curve:
            sender.curve_serverkey = keys["server"].public
            sender.curve_publickey, sender.curve_secretkey = keys["client-1"].public, keys["client-1"].secret
        sender.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        downstream, _ = listener.accept()
        for ends in ((downstream, upstream), (upstream, downstream)):
            threading.Thread(target=pump, args=ends, daemon=True).start()
        sender.send(payload)
        assert receiver.poll(5000)
        assert receiver.recv() == payload
        for end in (downstream, upstream, listener):
            end.close()
        receiver.close()
    context.destroy(linger=0)
    return bytes(seen)


def test_refusals_become_the_error_that_the_peer_named() -> None:
    assert isinstance(error_from(Refused("too big", "RangeError"), "server"), RangeError)
    for name in ("SystemExit", "annotations", "nonsense"):
        assert type(error_from(Refused("no", name), "server")).__name__ == "RefusedError"
