from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.links import codec

from splitsec.transport import Hub, KeyPair, Wire, load_key_pair, make_keys


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
