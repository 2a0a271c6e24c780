"""The TOML file of one party, and running that party from it.

`threads` is how many torch may use; `cpu` puts the whole process on one processor, which keeps a party's thread and
ZeroMQ's together and cuts the waiting where several parties share a machine (docs/performance.md). The server's
prediction sessions then take processors of their own, from that one on.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from splitsec.errors import ConfigError, first_line
from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.program import Reveal
from splitsec.parties.allowance import Answers
from splitsec.privacy.rules import Privacy
from splitsec.training.schedule import Combine

Topology: TypeAlias = Literal["horizontal", "vertical", "halves"]


class DealerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`splitsec dealer`."""

    address: str
    keys: str = "keys"
    minimum: int = 2
    checkpoints: str | None = None
    threads: int = 1
    cpu: int | None = None


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`splitsec server`. `out` receives the trained tail; `weights` is a tail to begin with.

    `calibration` is a safetensors file with `activations`, see `Server`.

    `topology` is `horizontal` for clients with rows (a U where `cut` has two names), `vertical` for columns of the same
    people, `halves` for parts of a model; the latter two have no cut, and with `halves` no tail. From `epochs` to
    `held_out`, `topology` apart, are the schedule's settings, see `Schedule`; with `checkpoints`, a directory, a run
    that was killed goes on when it is started again.

    `predictions_per_client`, `counts` (the file's own directory if it is left out), `answers`,
    `answer_bits` and `session_ports` are those of `Server`.

    `seed` fixes the tail's first weights, for a run that can be repeated: whoever knows it knows them.
    """

    address: str
    dealer: str
    model: str = ""
    clients: tuple[str, ...] = ()
    cut: str = ""
    keys: str = "keys"
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 2e-3
    combine: Combine = "average"
    every: int = 0
    minimum: int = 2
    in_flight: int = 1
    proximal: float = 0.0
    server_momentum: float = 0.0
    decay: bool = False
    compress: str = "none"
    privacy: Privacy = Privacy()
    topology: Topology = "horizontal"
    order: int = 0
    held_out: float = 0.2
    seed: int | None = None
    weights: str | None = None
    checkpoints: str | None = None
    calibration: str | None = None
    out: str | None = None
    stay: bool = False
    predictions_per_client: int | None = None
    counts: str | None = None
    answers: Answers = "any"
    answer_bits: int = 10
    session_ports: str | None = None
    timeout: float = 60.0
    round_timeout: float | None = None
    join_timeout: float = 120.0
    threads: int = 1
    cpu: int | None = None


class ClientConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`splitsec client`. `seed` is the same at all clients, since their first weights come from it; `out` receives
    front and predictions.

    The order of rows and dropout come from `seed` and a fresh secret of each run, so that no run repeats another bit
    for bit. `repeatable = true` leaves the secret out, for tests and demonstrations on data that need no protection:
    whoever sees two such runs, with this client and without it, has this client's update.

    `topology` is the server's. With `vertical`, `data` holds columns (`Columns.load`) and the model is a
    `VerticalModel`; with `halves`, the model is this client's part, trained for `epochs` with `train_batch_size` and
    `learning_rate`. Neither has a cut.

    With `vertical`, `standardise` gives each column mean 0 and spread 1 over the rows for training, but for those that
    `codes` names, which the front looks up in an embedding. `weights`, the front that an earlier run saved, brings its
    mean and spread with it; with `train = false` the rows of people who come later are aligned and predicted. `ask`
    says whether this client asks for the predictions; if nothing is said, that is the one whose data has labels.

    `ahead`, `reveal`, `checked` and `comparison` are those of `Client.predict`. `ledgers`, or else `out`, also receives
    the ledger of a run with a privacy budget; `epsilon_limit` is what all runs with a ledger there may spend together
    of any record of this client. `activation_clip` is for a client that does not train: that of the run in which its
    front was trained.
    """

    name: str
    server: str
    dealer: str
    model: str
    data: str
    cut: str = ""
    topology: Topology = "horizontal"
    keys: str = "keys"
    seed: int = 0
    weights: str | None = None
    predictions: int | None = None
    batch_size: int = 1
    epochs: int = 30
    train_batch_size: int = 16
    learning_rate: float = 2e-3
    ahead: int = 1
    reveal: Reveal = "logits"
    checked: bool = False
    comparison: ComparisonKind = "tables"
    out: str | None = None
    ledgers: str | None = None
    epsilon_limit: float = 0.0
    checkpoints: str | None = None
    train: bool = True
    repeatable: bool = False
    ask: bool | None = None
    standardise: bool = True
    codes: tuple[str, ...] = ()
    activation_clip: float = 0.0
    timeout: float = 60.0
    join_timeout: float = 120.0
    threads: int = 1
    cpu: int | None = None


ConfigT = TypeVar("ConfigT", DealerConfig, ServerConfig, ClientConfig)


_PARTIES: tuple[Any, ...] = (DealerConfig, ServerConfig, ClientConfig)


def read_config(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a party's TOML file; raises `ConfigError` that names the setting at fault, and what it wants."""
    try:
        given = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path} is not a text file in UTF-8; settings are written as TOML, see docs/by-hand.md"
        ) from None
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ConfigError(
            f"{path} is not TOML: {first_line(error)}; text stands in quotes, one setting a line: name = value"
        ) from None
    config: ConfigT = _converted(given, kind, f"{path}: ", "")
    return config


def _converted(given: dict[str, Any], kind: type[Any], source: str, above: str) -> Any:
    fields = {one.name: one for one in msgspec.structs.fields(kind)}
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1, 0.6)
            others = [one for one in _PARTIES if one is not kind and name in one.__struct_fields__]
            if others and not above and kind in _PARTIES:
                party = others[0].__name__.removesuffix("Config").lower()
                mine = kind.__name__.removesuffix("Config").lower()
                raise ConfigError(
                    f"{source}'{name}' is a setting of the {party} and not of the {mine}: is the file another party's?"
                )
            meant = f"did you mean {above}{near[0]}? " if near else ""
            raise ConfigError(f"{source}there is no setting '{above}{name}'; {meant}There are: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, one in fields.items():
        if name in given:
            values[name] = _value(given[name], one.type, source, above + name)
        elif one.required:
            raise ConfigError(f"{source}the setting '{above}{name}' is missing: {name} = {_EXAMPLES.get(name, '...')}")
    return kind(**values)


def _value(value: Any, wanted: Any, source: str, name: str) -> Any:
    if isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        if not isinstance(value, dict):
            names = ", ".join(one.name for one in msgspec.structs.fields(wanted))
            raise ConfigError(
                f"{source}{name} wants a table, such as {{epsilon = 3.0}}, of: {names}; not {_kind(value)}"
            )
        return _converted(value, wanted, source, f"{name}.")
    try:
        return msgspec.convert(value, wanted)
    except msgspec.MsgspecError:
        raise ConfigError(f"{source}{name} wants {_wants(wanted)}, not {_kind(value)}") from None


_EXAMPLES = {
    "address": '"tcp://0.0.0.0:5555"',
    "server": '"tcp://server.example:5555"',
    "dealer": '"tcp://dealer.example:5556"',
    "name": '"ward-a"',
    "model": '"net.py:Net"',
    "data": '"part.safetensors"',
}
_KINDS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


def _wants(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return "one of " + ", ".join(f'"{one}"' for one in get_args(wanted))
    if get_origin(wanted) is tuple:
        return 'a list of texts, such as ["ward-a", "ward-b"]'
    parts = [one for one in get_args(wanted) if one is not type(None)] or [wanted]
    return " or ".join(_KINDS.get(one, getattr(one, "__name__", str(one))) for one in parts)


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


def write_config(path: Path, config: DealerConfig | ServerConfig | ClientConfig) -> None:
    """Write a TOML file that `read_config` reads back; settings that are None are left out."""
    fields = {name: value for name, value in msgspec.structs.asdict(config).items() if value is not None}
    path.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in fields.items()), encoding="utf-8")


def _toml(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in msgspec.structs.asdict(value).items()) + "}"
    # A JSON string, number, boolean or array of strings is written alike in TOML, but for characters that JSON writes
    # as two escapes (such as emoji), and one that TOML must escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
