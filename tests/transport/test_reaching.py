"""Why a peer cannot be reached, told apart at once where it can be known."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from splitsec.errors import AddressError, AuthenticationError, PartyTimeoutError, SplitsecError
from splitsec.transport import KeyPair, Wire, load_key_pair, make_keys
from splitsec.transport.keys import fingerprint
from splitsec.transport.reaching import Reaching, check_host, probe


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KeyPair]:
    directory: Path = tmp_path_factory.mktemp("keys")
    names = ["server", "dealer", "a", "other"]
    make_keys(directory, names)
    return {name: load_key_pair(directory, name) for name in names}


@contextmanager
def _party(keys: KeyPair, known: dict[str, bytes], address: str = "tcp://127.0.0.1:*") -> Iterator[str]:
    with Wire(keys) as wire:
        wire.admit("hub", known)
        bound, where = wire.bind(zmq.ROUTER, address, "hub")
        try:
            yield where
        finally:
            bound.close(0)


@contextmanager
def _program(answer: bytes | None) -> Iterator[str]:
    """Something else that listens: closes at once, or answers what is not of ZeroMQ, or (None) says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                if answer is None:
                    kept.append(connection)
                    continue
                if answer:
                    connection.sendall(answer)
                    connection.settimeout(0.2)
                    try:
                        while connection.recv(100):
                            pass
                    except OSError:
                        pass
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for one in kept:
            one.close()


def _nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def _way(keys: dict[str, KeyPair], address: str) -> Iterator[Reaching]:
    """Client `a` on its way to what it takes for the server."""
    with Wire(keys["a"]) as wire:
        connected = wire.connect(zmq.DEALER, address, keys["server"].public)
        others = {"dealer": keys["dealer"].public, "server": keys["server"].public}
        way = Reaching(
            connected,
            peer="server",
            address=address,
            peer_key=keys["server"].public,
            keys=keys["a"],
            others=others,
        )
        try:
            yield way
        finally:
            way.close()
            connected.close(0)


def _found(way: Reaching, seconds: float = 20) -> SplitsecError | None:
    """What is found before it is given up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            way.look(deadline - time.monotonic())
        except SplitsecError as error:
            return error
        time.sleep(0.05)
    return None


def test_another_key_is_found_long_before_the_time_limit(keys: dict[str, KeyPair]) -> None:
    with _party(keys["other"], {"a": keys["a"].public}) as address, _way(keys, address) as way:
        error = _found(way)
        assert isinstance(error, AuthenticationError)
        assert f"holds another key than the one that we have for server (fingerprint {_mark(keys)})" in str(error)
        assert way.failed
        with pytest.raises(AuthenticationError):
            way.look(1)


def _mark(keys: dict[str, KeyPair]) -> str:
    return fingerprint(keys["server"].public)


@pytest.mark.parametrize("known", [True, False])
def test_the_dealers_address_given_as_the_servers_is_named(keys: dict[str, KeyPair], known: bool) -> None:
    admitted = {"a": keys["a"].public} if known else {"other": keys["other"].public}
    with _party(keys["dealer"], admitted) as address, _way(keys, address) as way:
        error = _found(way)
        assert isinstance(error, AddressError)
        assert f"{address}, given as the address of server, is that of dealer" in str(error)


def test_a_party_that_does_not_know_our_key_is_told_apart(keys: dict[str, KeyPair]) -> None:
    with _party(keys["server"], {"other": keys["other"].public}) as address, _way(keys, address) as way:
        error = _found(way)
        assert isinstance(error, AuthenticationError)
        assert f"refused our key: it knows another one of a.* (fingerprint {fingerprint(keys['a'].public)})".split(
            ".*"
        )[0] in str(error)
        assert fingerprint(keys["a"].public) in str(error)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 80, b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_another_program_is_no_party(keys: dict[str, KeyPair], answer: bytes) -> None:
    with _program(answer) as address:
        assert probe(address) == "foreign"
        with _way(keys, address) as way:
            error = _found(way)
            assert isinstance(error, AddressError)
            assert f"what listens at {address} is no party of splitsec" in str(error)


@pytest.mark.parametrize(
    ("answer", "reason"), [(b"", "every connection is closed at once"), (None, "takes connections and says nothing")]
)
def test_a_gateway_with_nobody_behind_it_is_waited_for(
    keys: dict[str, KeyPair], answer: bytes | None, reason: str
) -> None:
    with _program(answer) as address, _way(keys, address) as way:
        assert _found(way, 2.5) is None
        assert reason in str(way.silence(3))


def test_a_server_that_starts_later_is_waited_for_with_one_line(
    keys: dict[str, KeyPair], caplog: pytest.LogCaptureFixture
) -> None:
    address = _nobody()
    with caplog.at_level(logging.WARNING), _way(keys, address) as way:
        assert _found(way, 1.5) is None
        lines = [record.getMessage() for record in caplog.records if "waits for server" in record.getMessage()]
        assert len(lines) == 1
        assert "a waits for server at tcp://127.0.0.1" in lines[0]
        assert "nobody listens there yet" in lines[0]
        late = way.silence(1.5)
        assert isinstance(late, PartyTimeoutError)
        assert "did not answer within 1.5 s: nobody listens there: start it, or correct the address" in str(late)
        # Control: when it comes, nothing is wrong.
        with _party(keys["server"], {"a": keys["a"].public}, address):
            assert _found(way, 2) is None
            assert "though it is connected" in str(way.silence(2))


def test_a_host_name_that_nobody_knows_is_said_at_once() -> None:
    with pytest.raises(
        AddressError, match="the host 'no-such-host.invalid' in the address of server is not known here"
    ):
        check_host("server", "tcp://no-such-host.invalid:5555")
    check_host("server", "tcp://localhost:5555")
    check_host("server", "tcp://127.0.0.1:5555")
