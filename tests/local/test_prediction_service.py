"""A dealer and a server that only answer predictions: what is written for them, and nothing more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.parties_in_threads import CUT, model

from splitsec import SplitModel
from splitsec.local.prediction_service import Service, start_service
from splitsec.parties.start_checks import load_calibration
from splitsec.settings.parties import ServerConfig
from splitsec.settings.toml import read_config


class Started:
    """Notes which parties are started, and gives each an address."""

    def __init__(self) -> None:
        self.parties: list[str] = []

    def start(self, name: str, _role: str, _config: Path) -> None:
        self.parties.append(name)

    def wait_listening(self, name: str, _seconds: float) -> str:
        return f"tcp://127.0.0.1:{len(self.parties)}"


def _start(directory: Path, **options: Any) -> tuple[Started, tuple[str, str], ServerConfig]:
    group = Started()
    service = Service("file.py:net", CUT, SplitModel(model(), CUT).tail, options.pop("calibration", None))
    addresses = start_service(group, directory, service, ("client-1", "client-2"), **options)  # type: ignore[arg-type]
    return group, addresses, read_config(directory / "server.toml", ServerConfig)


def test_the_dealer_is_there_before_the_server(tmp_path: Path) -> None:
    group, addresses, config = _start(tmp_path)
    assert group.parties == ["dealer", "server"]
    assert addresses == ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    assert (config.epochs, config.stay, config.calibration) == (0, True, None)


def test_a_gateway_is_used_and_a_calibration_handed_on(tmp_path: Path) -> None:
    activations = torch.ones(4, 6)
    _, (dealer, _), config = _start(tmp_path, calibration=activations, reach=lambda address: address + "9")
    assert dealer == config.dealer == "tcp://127.0.0.1:19"
    assert torch.equal(load_calibration(tmp_path / "calibration"), activations)
