"""What each party's file may say, and what is required."""

from __future__ import annotations

from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.run import RunSettings
from splitsec.settings.setting import describe, part_of


def _required(kind: type[object]) -> set[str]:
    return {described.name for described in describe(kind) if described.required}


def test_few_settings_are_required() -> None:
    assert _required(DealerConfig) == {"address"}
    assert {"address", "dealer", "clients"} <= _required(ServerConfig)
    assert {"name", "server", "dealer"} <= _required(ClientConfig)


def test_every_setting_says_what_it_is() -> None:
    for kind in (DealerConfig, ServerConfig, ClientConfig):
        for described in describe(kind):
            assert described.help.endswith("."), described.name


def test_the_settings_of_the_run_are_those_of_the_servers_file() -> None:
    config = ServerConfig(address="x", dealer="y", clients=("a", "b"), model="m", cut="1", epochs=9)
    settings = part_of(config, RunSettings)
    assert (settings.clients, settings.epochs) == (("a", "b"), 9)
