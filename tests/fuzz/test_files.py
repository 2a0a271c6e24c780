"""Damaged files to everything that reads one: each is read, or refused with one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fuzz_inputs import SECONDS, chooser, damaged, rounds

from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.errors import SplitsecError
from splitsec.privacy.ledger import read_ledger
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.toml import read_config
from splitsec.training.checkpoints import Checkpoints
from splitsec.transport import load_key_pair, load_public_keys, make_keys

# As long as it is told to go on, and as much again to start.
pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)

Target = tuple[Path, Callable[[], Any]]


def _key(place: Path, name: str) -> Target:
    make_keys(place, ["server"])
    return place / name, lambda: (load_key_pair(place, "server"), load_public_keys(place))


def _config(place: Path, kind: Any, text: str) -> Target:
    path = place / "party.toml"
    path.write_text(text)
    return path, lambda: read_config(path, kind)


def _part(place: Path) -> Target:
    path = place / "part.safetensors"
    Part(torch.rand(3, 4), torch.arange(3), torch.rand(2, 4), torch.arange(2)).save(path)
    return path, lambda: Part.load(path)


def _table(place: Path) -> Target:
    path = place / "table.csv"
    path.write_text("id,age,weight,label\na,3,4.5,0\nb,5,6.5,1\nc,1,2,0\n")
    return path, lambda: Columns.load(path)


def _checkpoint(place: Path, suffix: str) -> Target:
    kept = Checkpoints(place)
    kept.save(3, {"weight": torch.rand(4, 4)}, {"run": "ab" * 16, "rounds": 5})
    return place / f"round-000003.{suffix}", lambda: kept.load(3)


def _ledger(place: Path) -> Target:
    path = place / "ledger.json"
    path.write_text(
        '{"run":"' + "ab" * 16 + '","client":"client-1","unit":"record","delta":1e-05,"epsilon":8.0,'
        '"accountant":"prv","samples":12,"entries":[]}'
    )
    return path, lambda: read_ledger(path)


SERVER = 'address = "tcp://127.0.0.1:5555"\ndealer = "tcp://127.0.0.1:5556"\nmodel = "splitsec.models:digits_cnn"\n'
SERVER += 'cut = "pool"\nclients = ["client-1", "client-2"]\nepochs = 3\nlearning_rate = 0.01\n'
CLIENT = 'name = "client-1"\nserver = "tcp://127.0.0.1:5555"\ndealer = "tcp://127.0.0.1:5556"\n'
CLIENT += 'model = "splitsec.models:digits_cnn"\ncut = "pool"\ndata = "part.safetensors"\n'
TARGETS: dict[str, Callable[[Path], Target]] = {
    "secret key": lambda place: _key(place, "server.key_secret"),
    "public key": lambda place: _key(place, "server.key"),
    "server": lambda place: _config(place, ServerConfig, SERVER),
    "client": lambda place: _config(place, ClientConfig, CLIENT),
    "dealer": lambda place: _config(place, DealerConfig, 'address = "tcp://127.0.0.1:5556"\nminimum = 2\n'),
    "part": _part,
    "table": _table,
    "checkpoint's facts": lambda place: _checkpoint(place, "json"),
    "checkpoint's tensors": lambda place: _checkpoint(place, "safetensors"),
    "ledger": _ledger,
}


@pytest.mark.parametrize("name", TARGETS)
def test_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    path, read = TARGETS[name](tmp_path)
    right = path.read_bytes()
    chosen, said = chooser(name), set[str]()
    for _ in rounds(chosen, 0.5):
        path.write_bytes(damaged(right, chosen))
        try:
            read()
        except SplitsecError as error:
            said.add(str(error))
    assert all(text.isprintable() for text in said)
