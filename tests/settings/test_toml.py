"""Settings in TOML: read, written, and refused by their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitsec.errors import ConfigError
from splitsec.settings.parties import DealerConfig, ServerConfig
from splitsec.settings.privacy import Privacy
from splitsec.settings.toml import read_config, write_config

SERVER = 'address = "tcp://127.0.0.1:1"\ndealer = "tcp://127.0.0.1:2"\nclients = ["a", "b"]\n'


def _read(directory: Path, text: str) -> ServerConfig:
    (directory / "server.toml").write_text(text)
    config: ServerConfig = read_config(directory / "server.toml", ServerConfig)
    return config


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = ServerConfig(
        address="tcp://127.0.0.1:1",
        dealer="tcp://127.0.0.1:2",
        clients=("ward ä", 'b"'),
        model="file.py:net",
        cut="1",
        epochs=7,
        privacy=Privacy(epsilon=3.0),
    )
    write_config(tmp_path / "server.toml", config)
    assert read_config(tmp_path / "server.toml", ServerConfig) == config
    assert "learning_rate" not in (tmp_path / "server.toml").read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epoch = 3\n", "did you mean epochs"),
        ("topology = 'u'\n", "'topology' is called layout now"),
        ("epochs = 'three'\n", 'epochs wants a whole number, not the text "three"'),
        ("privacy = 3\n", "privacy wants a table"),
        ("privacy = {epsilom = 3}\n", "did you mean privacy.epsilon"),
        ("epochs 3\n", "is not TOML"),
        ("name = 'a'\n", "is a setting of the client and not of the server"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        _read(tmp_path, SERVER + text)
    assert "server.toml" in str(error.value)


def test_a_setting_that_is_missing_is_named_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "dealer.toml").write_text("")
    with pytest.raises(ConfigError, match="the setting 'address' is missing: address = "):
        read_config(tmp_path / "dealer.toml", DealerConfig)
