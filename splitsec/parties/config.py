"""The TOML file of one party, and running that party from it.

`threads` is how many torch may use; `cpu` puts the whole process on one processor, which keeps a party's thread and
ZeroMQ's together and cuts the waiting where several parties share a machine (docs/performance.md). The server's
prediction sessions then take processors of their own, from that one on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import msgspec

from splitsec.errors import ConfigError
from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.program import Reveal
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

    `seed` fixes the tail's first weights, for a run that can be repeated: whoever knows it knows them.
    """

    address: str
    dealer: str
    model: str
    clients: tuple[str, ...]
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
    timeout: float = 60.0
    round_timeout: float | None = None
    join_timeout: float = 120.0
    threads: int = 1
    cpu: int | None = None


class ClientConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`splitsec client`. `seed` is the same at all clients; `out` receives front and predictions.

    `topology` is the server's. With `vertical`, `data` holds columns (`Columns.load`) and the model is a
    `VerticalModel`; with `halves`, the model is this client's part, trained for `epochs` with `train_batch_size` and
    `learning_rate`. Neither has a cut.

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
    activation_clip: float = 0.0
    timeout: float = 60.0
    join_timeout: float = 120.0
    threads: int = 1
    cpu: int | None = None


ConfigT = TypeVar("ConfigT", DealerConfig, ServerConfig, ClientConfig)


def read_config(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read a party's TOML file; raises `ConfigError` that names the setting at fault."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def write_config(path: Path, config: DealerConfig | ServerConfig | ClientConfig) -> None:
    """Write a TOML file that `read_config` reads back; settings that are None are left out."""
    fields = {name: value for name, value in msgspec.structs.asdict(config).items() if value is not None}
    path.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in fields.items()))


def _toml(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in msgspec.structs.asdict(value).items()) + "}"
    # A JSON string, number, boolean or array of strings is written alike in TOML.
    return json.dumps(value)
