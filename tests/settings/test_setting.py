"""A setting has one home: what is added there is an option, TOML, on the wire, and part of a run's identity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from splitsec.errors import ConfigError
from splitsec.settings import toml
from splitsec.settings.options import parse_options
from splitsec.settings.parties import Process
from splitsec.settings.run import RunSettings
from splitsec.settings.setting import Bounds, check_bounds, describe, growing, identity, setting
from splitsec.settings.timeouts import Waiting


@dataclass(frozen=True, kw_only=True)
class Longer(RunSettings):
    """The settings of a run with one more: the only edit."""

    warm_up: Annotated[int, setting("Rounds with a small learning rate.", Bounds(least=0, most=9), unit="rounds")] = 0


@dataclass(frozen=True, kw_only=True)
class LongerServer(Longer, Waiting, Process):
    """A server's file, as `ServerConfig` is made of `RunSettings`."""

    dealer: Annotated[str, setting("Address of the dealer.", example='"tcp://x:1"')]


def test_a_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    read = parse_options(Longer, ["--clients", "a", "b", "--warm-up", "3"], prog="splitsec x", description="X.")
    assert read == Longer(clients=("a", "b"), warm_up=3)
    with pytest.raises(SystemExit) as done:
        parse_options(Longer, ["--help"], prog="splitsec x", description="X.")
    assert done.value.code == 0
    assert "Rounds with a small learning rate." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--warm-up", "10"], "--warm-up 10: write a whole number from 0 to 9"),
        (["--warm-up", "x"], "--warm-up: write a whole number from 0 to 9, not 'x'"),
        (["--warmup", "1"], "--warmup"),
        (["--privacy.epsilon", "-1"], "--privacy.epsilon -1: write a number above 0"),
        (["--combine", "relay"], "--combine is called --aggregation now"),
        (["--dp-epsilon=3"], "--dp-epsilon is called --privacy.epsilon now"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        parse_options(Longer, ["--clients", "a", "b", *arguments], prog="splitsec x", description="X.")
    said = capsys.readouterr().err
    assert (done.value.code, said.count("\n")) == (2, 1)
    assert message in said


def test_a_setting_is_a_line_of_toml(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text('dealer = "tcp://x:1"\nclients = ["a", "b"]\nwarm_up = 3\n')
    config = toml.read_config(path, LongerServer)  # type: ignore[type-var]
    assert config.warm_up == 3
    toml.write_config(path, config)  # type: ignore[arg-type]
    assert toml.read_config(path, LongerServer) == config  # type: ignore[type-var]
    path.write_text('dealer = "tcp://x:1"\nclients = ["a", "b"]\nwarm_up = "x"\n')
    with pytest.raises(ConfigError, match='warm_up wants a whole number, not the text "x"'):
        toml.read_config(path, LongerServer)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="warm_up = 12: write a whole number from 0 to 9"):
        check_bounds(replace(config, warm_up=12))


def test_a_setting_travels_and_is_checked_where_it_comes_in() -> None:
    settings = Longer(clients=("a", "b"), warm_up=3)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Longer) == settings
    beyond = msgspec.msgpack.encode(replace(settings, warm_up=12))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(beyond, type=Longer)


def test_a_setting_identifies_a_run_unless_it_may_grow() -> None:
    settings = Longer(clients=("a", "b"), warm_up=3)
    assert identity(settings)["warm_up"] == 3
    assert identity(settings) != identity(replace(settings, warm_up=4))
    assert "epochs" not in identity(settings)
    assert growing(settings) == {"epochs": 30}


def test_every_setting_says_what_it_is() -> None:
    for kind in (LongerServer, toml.ServerConfig, toml.ClientConfig, toml.DealerConfig):
        for described in describe(kind):
            assert described.help.endswith("."), described.name
            assert described.help[0].isupper() or described.help[0] == "`" or described.help.startswith("safetensors")


@pytest.mark.parametrize(("old", "new"), sorted(toml.RENAMED.items()))
def test_an_old_name_is_refused_with_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    table = old == "front"
    path.write_text(f"privacy = {{{old} = 0.5}}\n" if table else f"{old} = 1\n")
    above = "privacy." if table else ""
    with pytest.raises(ConfigError, match=f"'{above}{old}' is called {above}{new} now"):
        toml.read_config(path, toml.ServerConfig)


def test_the_old_name_of_model_parts_is_refused_with_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text('layout = "halves"\n')
    with pytest.raises(ConfigError, match='layout = "halves" is called "model_parts" now'):
        toml.read_config(path, toml.ClientConfig)
