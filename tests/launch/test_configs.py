"""Settings in `launch/configs`: every file is read and checked as its party would, and the parties' files agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.launch_files import CONFIGS, DEALER_PORT, LAYOUTS, SERVER_PORT, SESSION_PORTS, settings

from splitsec.errors import ConfigError
from splitsec.transport.addresses import host_and_port


def test_there_are_settings_for_every_layout() -> None:
    assert LAYOUTS == ["horizontal", "model_parts", "private", "relay", "u", "vertical"]
    for layout in LAYOUTS:
        assert sorted(path.name for path in (CONFIGS / layout).iterdir()) == ["client.toml", "server.toml"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parties_of_a_layout_agree(layout: str) -> None:
    dealer, server, client = (
        settings(CONFIGS / name) for name in ("dealer.toml", f"{layout}/server.toml", f"{layout}/client.toml")
    )
    assert host_and_port(dealer.address)[1] == str(DEALER_PORT)
    assert host_and_port(server.address)[1] == host_and_port(client.server)[1] == str(SERVER_PORT)
    assert server.dealer == client.dealer == f"tcp://dealer.example:{DEALER_PORT}"
    assert server.session_ports == "{}-{}".format(*SESSION_PORTS)
    assert client.name in server.clients
    assert (client.layout, client.cut) == (server.layout, server.cut)
    assert client.model == server.model or layout == "model_parts"
    # Every party keeps its files in its home, under the names of launch/README.md.
    assert dealer.keys == server.keys == client.keys == "keys"
    assert client.data == ("columns.csv" if layout == "vertical" else "part.safetensors")
    assert client.out == "out"


def test_only_the_run_with_a_budget_has_one() -> None:
    budgets = {layout: settings(CONFIGS / layout / "server.toml").privacy.epsilon for layout in LAYOUTS}
    assert {layout for layout, epsilon in budgets.items() if epsilon} == {"private"}


def test_control_a_setting_that_does_nothing_is_seen(tmp_path: Path) -> None:
    text = (CONFIGS / "horizontal" / "server.toml").read_text()
    (tmp_path / "server.toml").write_text(text + "held_out = 0.5\n")
    with pytest.raises(ConfigError, match="held_out"):
        settings(tmp_path / "server.toml")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_client_needs_another_name_and_nothing_else(layout: str) -> None:
    server, client = (settings(CONFIGS / layout / f"{party}.toml") for party in ("server", "client"))
    for name in server.clients:
        assert replace(client, name=name).name in server.clients
