"""Read and write a party's settings as TOML, the settings of every kind derived from their descriptions."""

from __future__ import annotations

import difflib
import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from splitsec.errors import ConfigError, first_line
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.setting import Described, describe, values_of

Config: TypeAlias = DealerConfig | ServerConfig | ClientConfig
ConfigT = TypeVar("ConfigT", DealerConfig, ServerConfig, ClientConfig)
_PARTIES: tuple[type[Any], ...] = (DealerConfig, ServerConfig, ClientConfig)
# Names of settings before version 0.2, and what they are called now.
RENAMED = {
    "combine": "aggregation",
    "every": "steps_per_round",
    "minimum": "minimum_clients",
    "in_flight": "batches_in_flight",
    "compress": "compression",
    "order": "row_order_seed",
    "topology": "layout",
    "front": "front_fraction",
}


def read_config(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a party's TOML file; raises `ConfigError` that names the setting at fault, and what it wants."""
    try:
        content = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path} is not a text file in UTF-8; settings are written as TOML, see docs/how-to/run-parties-by-hand.md"
        ) from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ConfigError(
            f"{path} is not TOML: {first_line(error)}; text stands in quotes, one setting a line: name = value"
        ) from None
    config: ConfigT = _settings(content, kind, f"{path}: ", "")
    return config


def write_config(path: Path, config: Config) -> None:
    """Write a TOML file that `read_config` reads back; settings at their defaults are left out."""
    lines = (
        f"{described.name} = {_toml(value)}\n"
        for described, value in values_of(config)
        if described.required or value != described.default
    )
    path.write_text("".join(lines), encoding="utf-8")


def _settings(content: dict[str, Any], kind: type[Any], source: str, above: str) -> Any:
    described = {setting.name: setting for setting in describe(kind)}
    for name in content:
        if name not in described:
            raise ConfigError(f"{source}{_unknown(name, described, kind, above)}")
    values = {name: _value(value, described[name], source, above + name) for name, value in content.items()}
    for name, setting in described.items():
        if setting.required and name not in content:
            raise ConfigError(f"{source}the setting '{above}{name}' is missing: {name} = {setting.example}")
    return kind(**values)


def _unknown(name: str, described: dict[str, Described], kind: type[Any], above: str) -> str:
    if RENAMED.get(name) in described:
        return f"'{above}{name}' is called {above}{RENAMED[name]} now"
    others = [other for other in _PARTIES if other is not kind and name in other.__dataclass_fields__]
    if others and not above and kind in _PARTIES:
        other_party, this_party = (party.__name__.removesuffix("Config").lower() for party in (others[0], kind))
        return f"'{name}' is a setting of the {other_party} and not of the {this_party}: is the file another party's?"
    near = difflib.get_close_matches(name, described, 1, 0.6)
    meant = f"did you mean {above}{near[0]}? " if near else ""
    return f"there is no setting '{above}{name}'; {meant}There are: {', '.join(described)}"


def _value(value: Any, setting: Described, source: str, name: str) -> Any:
    if setting.table is not None:
        if not isinstance(value, dict):
            names = ", ".join(inner.name for inner in describe(setting.table))
            raise ConfigError(
                f"{source}{name} wants a table, such as {{epsilon = 3.0}}, of: {names}; not {_kind(value)}"
            )
        return _settings(value, setting.table, source, f"{name}.")
    try:
        return msgspec.convert(value, setting.type)
    except msgspec.MsgspecError:
        if name == "layout" and value == "halves":
            raise ConfigError(f'{source}layout = "halves" is called "model_parts" now') from None
        raise ConfigError(f"{source}{name} wants {setting.kinds}, not {_kind(value)}") from None


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'the text "{value[:40]}"'
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"


def _toml(value: object) -> str:
    if is_dataclass(value):
        inner = ((setting.name, item) for setting, item in values_of(value) if item != setting.default)
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in inner) + "}"
    # A JSON string, number, boolean or array of strings is written alike in TOML, but for characters that JSON writes
    # as two escapes (such as emoji), and one that TOML must escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
