"""Whether the other end is there: by what ZeroMQ's sockets say, over real connections."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from splitsec.transport import Presence, Wire, load_key_pair, make_keys
from splitsec.transport.presence import EVENTS


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def wires(tmp_path: Path) -> dict[str, Wire]:
    make_keys(tmp_path, ["server", "a", "stranger"])
    return {name: Wire(load_key_pair(tmp_path, name)) for name in ("server", "a", "stranger")}


def test_a_peer_that_comes_and_goes_is_seen_at_both_ends(wires: dict[str, Wire]) -> None:
    server, client, stranger = wires["server"], wires["a"], wires["stranger"]
    with server, client, stranger:
        server.admit("s", {"a": client.keys.public})
        bound, address = server.bind(zmq.DEALER, "tcp://127.0.0.1:*", "s", events=EVENTS)
        at_server = Presence(bound)
        assert at_server.absent() > 0
        # Control: somebody without the key is nobody, before the peer comes and while it is there.
        knocking = stranger.connect(zmq.DEALER, address, server.keys.public)
        monitor = knocking.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        assert monitor.poll(20_000)
        assert at_server.absent() > 0
        assert not at_server.came
        socket = client.connect(zmq.DEALER, address, server.keys.public, events=EVENTS)
        at_client = Presence(socket)
        _until(lambda: not at_client.absent() and not at_server.absent())
        knocking.disable_monitor()
        knocking.close(0)
        time.sleep(0.2)
        assert at_server.absent() == 0
        assert at_server.came
        at_client.close()
        socket.close(0)
        _until(lambda: at_server.absent() > 0.1)
        again = client.connect(zmq.DEALER, address, server.keys.public, events=EVENTS)
        at_client = Presence(again)
        _until(lambda: not at_client.absent() and not at_server.absent())
        at_server.close()
        bound.close(0)
        _until(lambda: at_client.absent() > 0.1)
        assert at_client.came
        at_client.close()


def test_who_never_answers_never_came(wires: dict[str, Wire]) -> None:
    with wires["server"], wires["a"] as client, wires["stranger"]:
        socket = client.connect(zmq.DEALER, "tcp://127.0.0.1:9", wires["server"].keys.public, events=EVENTS)
        presence = Presence(socket)
        time.sleep(0.2)
        assert presence.absent() > 0.1
        assert not presence.came
        presence.close()
