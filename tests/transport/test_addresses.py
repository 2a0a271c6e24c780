"""Addresses: what is none is refused with what is wrong."""

from __future__ import annotations

import pytest

from splitsec.errors import AddressError
from splitsec.transport.addresses import host_and_port


@pytest.mark.parametrize(
    ("address", "listen", "parts"),
    [
        ("tcp://127.0.0.1:5555", False, ("127.0.0.1", "5555")),
        ("tcp://server.example:1", False, ("server.example", "1")),
        ("tcp://*:*", True, ("*", "*")),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, listen: bool, parts: tuple[str, str]) -> None:
    assert host_and_port(address, listen=listen) == parts


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("server.example:5555", "does not say how: write tcp:// before it"),
        ("ipc://place", "begins with ipc://"),
        ("tcp://[::1]:5555", "looks like one of IPv6"),
        ("tcp://server.example", "is not tcp://HOST:PORT"),
        ("tcp://256.0.0.1:5555", "has the host '256.0.0.1'"),
        ("tcp://-server:5555", "has the host '-server'"),
        ("tcp://server:0", "has the port '0'"),
        ("tcp://server:65536", "has the port '65536'"),
        ("tcp://*:5555", "has the host '*'"),
        ("tcp://server:*", "has the port '*'"),
    ],
)
def test_text_that_is_no_address_is_refused_with_what_is_wrong(address: str, reason: str) -> None:
    with pytest.raises(AddressError) as refused:
        host_and_port(address)
    assert reason in str(refused.value)
