"""A worker: it listens on a port that is free."""

from __future__ import annotations

import pytest

from splitsec.errors import AddressError
from splitsec.prediction.server.worker import bind_within


def test_the_first_free_port_is_bound() -> None:
    tried: list[str] = []

    def bind(port: str) -> str:
        tried.append(port)
        if port in ("5001", "5002"):
            raise AddressError("in use")
        return port

    assert bind_within((5001, 5004), bind) == "5003"
    assert tried == ["5001", "5002", "5003"]
    assert bind_within(None, bind) == "*"
    with pytest.raises(AddressError, match="no free port for another session among 5001-5002"):
        bind_within((5001, 5002), bind)
