"""A client's links: what it tells the server, and what it passes over while it waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.parties_in_threads import world

from splitsec.errors import AuthenticationError
from splitsec.parties.client_connection import ClientConnection


def test_a_worker_is_at_the_servers_host_unless_a_gateway_lies_between(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        direct = ClientConnection(here.network("client-1"))
        through = ClientConnection(here.network("client-1", {"reach": lambda address: address + "0"}))
        try:
            assert direct.worker_address(7) == "tcp://127.0.0.1:7"
            assert through.worker_address(7) == "tcp://127.0.0.1:70"
            assert direct.bytes() == (0, 0)
        finally:
            direct.close()
            through.close()


def test_a_client_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0) as here:
        for name in ("client-1", "client-2"):
            connection = ClientConnection(here.network(name))
            connection.leave()
            connection.close()
        here.threads[1].join(30)
        assert not here.threads[1].is_alive()


def test_to_give_up_names_the_kind_of_error_and_not_its_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        connection = ClientConnection(here.network("client-1"))
        connection.leave()
        connection.give_up(ValueError("the value 4711 of row 3"))
        connection.leave()
        connection.close()
    assert "gave up (ValueError)" in caplog.text
    assert "4711" not in caplog.text


def test_without_the_servers_key_no_connection_is_made(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        peers = {name: key for name, key in here.peers.items() if name != "server"}
        with pytest.raises(AuthenticationError, match="no public key of server"):
            ClientConnection(here.network("client-1", {"peers": peers}))
