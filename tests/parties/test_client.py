"""The client as its user sees it: made of few objects, and closed whatever happens."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from support.parties_in_threads import part, world

from splitsec import Client, SplitModel
from splitsec.errors import ConfigError
from splitsec.parties.client_connection import ClientConnection


def test_a_client_is_made_of_few_objects() -> None:
    assert list(inspect.signature(Client).parameters) == ["front", "cut", "head", "network", "runtime"]


def test_a_head_belongs_to_a_u_and_nothing_is_left_open_where_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(ClientConnection, "__init__", lambda self, _network: opened.append(self))
    with world(tmp_path, epochs=0, stay=True) as here:
        split = SplitModel(torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(6))), "1,4")
        with pytest.raises(ConfigError, match="has no head"):
            here.client("client-1", split.front, head=split.head)
    assert opened == []


def test_an_error_in_its_block_is_told_to_the_server_and_the_client_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:

        def fails() -> None:
            with here.client("client-1") as client:
                client.predict(part().test_images[:1])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails()
        with here.client("client-2") as other:
            assert other.predict(part().test_images[:1]).labels.shape == (1,)
    assert "client-1 gave up (ZeroDivisionError)" in caplog.text
