"""The objects of which parties are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitsec import Network, Storage
from splitsec.errors import AuthenticationError
from splitsec.parties.setup import network_of, storage_of
from splitsec.settings.parties import ClientConfig
from splitsec.transport import load_key_pair, load_public_keys, make_keys


def _config(**changed: object) -> ClientConfig:
    return ClientConfig(
        **{"name": "a", "server": "tcp://s:1", "dealer": "tcp://d:2", "model": "m", "cut": "1", "data": "d", **changed}  # type: ignore[arg-type]
    )


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    make_keys(tmp_path, ["a", "server"])
    network = Network(keys=load_key_pair(tmp_path, "a"), peers=load_public_keys(tmp_path))
    network.check_peers("server")
    with pytest.raises(AuthenticationError, match="no public key of dealer, b"):
        network.check_peers("server", "dealer", "b")


def test_paths_of_a_file_are_beside_it(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["a", "server", "dealer"])
    network = network_of(_config(keys="keys"), tmp_path, "a")
    assert (network.server, network.dealer, network.keys.name) == ("tcp://s:1", "tcp://d:2", "a")
    assert storage_of(_config(checkpoints="kept"), tmp_path).checkpoints == tmp_path / "kept"
    assert storage_of(_config(), tmp_path).checkpoints is None


def test_a_ledger_lies_where_the_results_do_unless_told(tmp_path: Path) -> None:
    assert storage_of(_config(out="out"), tmp_path).ledgers == tmp_path / "out"
    assert storage_of(_config(out="out", ledgers="kept"), tmp_path).ledgers == tmp_path / "kept"
    assert Storage().ledgers is None


def test_keys_are_not_in_what_is_printed(tmp_path: Path) -> None:
    make_keys(tmp_path, ["a", "server"])
    keys = load_key_pair(tmp_path, "a")
    assert keys.secret.decode() not in repr(Network(keys=keys, peers={}))
