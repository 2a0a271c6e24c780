"""Checks of a party's settings: every one acts in its layout or is refused by its name, before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from splitsec.cut import INPUT, is_u
from splitsec.errors import AddressError, ConfigError, SplitsecError
from splitsec.party_names import DEALER, SERVER
from splitsec.settings.answers import check_answer_rules
from splitsec.settings.parties import BATCHES, ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.run import MODEL_PARTS, RULE_TRAITS, RunSettings, Training
from splitsec.settings.setting import check_bounds, describe, shown, values_of
from splitsec.settings.toml import Config, ConfigT, read_config
from splitsec.transport.addresses import host_and_port
from splitsec.transport.keys import check_party_name

_SERVER_DECIDES = "the server decides it for all clients"
_OF_ROWS = {
    "epochs": _SERVER_DECIDES,
    "train_batch_size": f"{_SERVER_DECIDES}, as its batch_size",
    "learning_rate": _SERVER_DECIDES,
}
_NO_ROUNDS = "no training rounds run here"
_ALONE = "each client trains its part by itself, as its own settings say"
_NOTHING_SPENT = {
    "ledgers": "nothing of the data's privacy is spent without training in a run",
    "epsilon_limit": "nothing of the data's privacy is spent without training in a run",
}
_FOR_COLUMNS = "it is for columns (layout = 'vertical')"
_OF_COLUMNS = {"ask": _FOR_COLUMNS, "standardise": _FOR_COLUMNS, "codes": _FOR_COLUMNS}
_OF_THE_WEIGHTS = "the weights say what the front is, and what is done to its columns"
# By layout, which settings do nothing, and why.
IDLE_AT_CLIENT: Mapping[str, Mapping[str, str]] = {
    "horizontal": {
        **_OF_ROWS,
        **_OF_COLUMNS,
        "activation_clip": "while training the server's rules of privacy have it; it is for train = false",
    },
    "u": {
        **_OF_ROWS,
        **_OF_COLUMNS,
        "activation_clip": "while training the server's rules of privacy have it; it is for train = false",
        "reveal": "the tail of a U ends before the labels, and the head needs its output",
    },
    "predictions": {
        **_OF_ROWS,
        **_OF_COLUMNS,
        **_NOTHING_SPENT,
        "seed": "the weights say what the front is",
        "checkpoints": "only training has them",
        "repeatable": "only training has an order of rows",
        "join_timeout": "there are no other clients to wait for",
    },
    "predictions of a U": {
        **_OF_ROWS,
        **_OF_COLUMNS,
        **_NOTHING_SPENT,
        "seed": "the weights say what the front is",
        "checkpoints": "only training has them",
        "repeatable": "only training has an order of rows",
        "join_timeout": "there are no other clients to wait for",
        "reveal": "the tail of a U ends before the labels, and the head needs its output",
    },
    "vertical": {**_OF_ROWS, "activation_clip": "it is for clients with rows and train = false"},
    "predictions of columns": {
        **_OF_ROWS,
        **_NOTHING_SPENT,
        "activation_clip": "it is for clients with rows and train = false",
        "seed": _OF_THE_WEIGHTS,
        "repeatable": "only training has an order of rows",
        "standardise": _OF_THE_WEIGHTS,
        "codes": _OF_THE_WEIGHTS,
        "checkpoints": "only training has them",
    },
    MODEL_PARTS: {
        **_OF_COLUMNS,
        **_NOTHING_SPENT,
        "cut": "every client has its whole part",
        "reveal": "a model in parts answers with logits",
        "checked": "a model in parts is not checked layer by layer",
        "comparison": "a model in parts compares by tables",
        "engine": "a model in parts runs through splitsec's own protocols",
        "checkpoints": "a part is trained in one go",
        "activation_clip": "no activation leaves the client in plain",
        "join_timeout": "the server waits for the others' parts, with its own",
    },
}
_NOTHING_TRAINED = "with epochs = 0 nothing is trained"
# A setting of training that is added acts only where something is trained together.
_OF_TRAINING = (
    *(setting.name for setting in describe(Training) if setting.name != "epochs"),
    "join",
    "row_order_seed",
    "round_timeout",
    "checkpoints",
)
IDLE_AT_SERVER: Mapping[str, Mapping[str, str]] = {
    "horizontal": {
        "join": _FOR_COLUMNS,
        "row_order_seed": f"{_FOR_COLUMNS}; clients with rows choose their own order",
        "held_out": f"{_FOR_COLUMNS}; clients with rows have test rows of their own",
    },
    "predictions": {
        **dict.fromkeys((*_OF_TRAINING, "held_out", "join_timeout"), _NOTHING_TRAINED),
        "seed": "the weights say what the tail is",
        "out": "nothing is trained that could be saved",
    },
    "vertical": {
        "aggregation": "the fronts of columns differ and are never combined",
        "minimum_clients": "columns are joined of all clients",
        "steps_per_round": "columns have nothing to combine between epochs",
        "proximal": "it holds segments near their average, and there is none",
        "server_momentum": "it is that of averages, and there are none",
    },
    # What is held out is all of it: that may be said, and so may where the tail is to be copied to.
    "predictions of columns": {
        **dict.fromkeys((name for name in _OF_TRAINING if name != "join"), _NOTHING_TRAINED),
        "seed": "the weights say what the tail is",
    },
    MODEL_PARTS: {
        "model": "the server has no model; each client names its own",
        "answers": "a model in parts answers with logits",
        "cut": "every client has its whole part",
        "out": "the server has nothing of its own to save",
        "weights": "the server has no weights of its own",
        "calibration": "clients measure their own parts",
        "seed": "the server makes no weights",
        "privacy": "a part of a model is trained by its client alone: train it with Opacus",
        "checkpoints": _NO_ROUNDS,
        "round_timeout": _NO_ROUNDS,
        **{
            setting.name: _ALONE
            for setting in describe(RunSettings)
            if setting.name not in ("clients", "layout", "privacy")
        },
    },
}


def read_settings(path: Path, kind: type[ConfigT]) -> ConfigT:
    """Read and check a party's TOML file; raises what `read_config` and `check_settings` do, with the file's name."""
    config = read_config(path, kind)
    try:
        check_settings(config)
    except SplitsecError as error:
        raise type(error)(f"{path}: {error}") from None
    return config


def layout_of(config: ServerConfig | ClientConfig) -> str:
    """Return which column of the tables a party's settings belong to."""
    trains = config.epochs > 0 if isinstance(config, ServerConfig) else config.train
    if config.layout == "vertical" and not trains:
        return "predictions of columns"
    if config.layout in ("vertical", MODEL_PARTS):
        return config.layout
    if isinstance(config, ServerConfig):
        return "horizontal" if config.epochs else "predictions"
    u = "," in config.cut
    if not config.train:
        return "predictions of a U" if u else "predictions"
    return "u" if u else "horizontal"


def idle_settings(config: Config) -> Mapping[str, str]:
    """Return the settings that do nothing in this party's layout, and why."""
    if isinstance(config, DealerConfig):
        return {}
    return (IDLE_AT_SERVER if isinstance(config, ServerConfig) else IDLE_AT_CLIENT)[layout_of(config)]


def without_idle(config: Config) -> Config:
    """Return the same settings, those that do nothing in the layout at their defaults."""
    defaults = {setting.name: setting.default for setting in describe(type(config))}
    return replace(config, **{name: defaults[name] for name in idle_settings(config)})


def check_settings(config: Config) -> None:
    """Look at everything that can be known without another party.

    Raises:
        ConfigError: a setting that cannot be, or that would do nothing; names it, and says what to do.
        AddressError: an address that is none.
    """
    # Without weights it is the layout itself that was not meant, which whoever loads the model says.
    meant = isinstance(config, DealerConfig) or config.weights is not None or "predictions" not in layout_of(config)
    idle = idle_settings(config) if meant else {}
    for setting, value in values_of(config):
        if setting.name in idle and value != setting.default:
            assert not isinstance(config, DealerConfig)
            why = idle[setting.name]
            raise ConfigError(f"{setting.name} = {shown(value)} does nothing {_where(config)}: {why}; leave it out")
    check_bounds(config)
    _check_processor(config.cpu)
    _check_addresses(config)
    if isinstance(config, ServerConfig):
        _check_server(config)
    elif isinstance(config, ClientConfig):
        _check_client(config)


def _where(config: ServerConfig | ClientConfig) -> str:
    serves = isinstance(config, ServerConfig)
    party, alone = ("the server", "epochs = 0") if serves else ("a client", "train = false")
    return {
        "horizontal": f"at {party} of clients with rows",
        "u": f"at {party} of a U (two cuts)",
        "predictions": f"at {party} of predictions alone ({alone})",
        "predictions of a U": f"at {party} of predictions alone (train = false)",
        "vertical": f'at {party} of columns (layout = "vertical")',
        "predictions of columns": f"at {party} of predictions alone ({alone})",
        MODEL_PARTS: f'at {party} of parts of a model (layout = "model_parts")',
    }[layout_of(config)]


def _check_processor(cpu: int | None) -> None:
    count = len(os.sched_getaffinity(0))
    if cpu is not None and cpu >= count:
        has = "one processor, which is 0" if count == 1 else f"{count} processors, 0 to {count - 1}"
        raise ConfigError(f"cpu = {cpu}: this process may use {has}")


def _check_addresses(config: Config) -> None:
    if not isinstance(config, ClientConfig):
        host_and_port(config.address, listen=True, what="address =")
    if isinstance(config, ClientConfig):
        host_and_port(config.server, what="server =")
    if not isinstance(config, DealerConfig):
        host_and_port(config.dealer, what="dealer =")
        other = config.server if isinstance(config, ClientConfig) else config.address
        if other == config.dealer:
            which = "server" if isinstance(config, ClientConfig) else "address"
            raise AddressError(f"{which} and dealer are both {other}: each party has an address of its own")


def _check_server(config: ServerConfig) -> None:
    RULE_TRAITS.get(config.aggregation)
    if not config.clients:
        raise ConfigError('clients is missing: name those who may take part, such as clients = ["ward-a", "ward-b"]')
    for name in config.clients:
        _check_client_name(name, "clients")
    twice = sorted({name for name in config.clients if config.clients.count(name) > 1})
    if twice:
        raise ConfigError(f"clients names {', '.join(twice)} twice; every client is one party with a key of its own")
    _check_cut(config)
    if config.layout != MODEL_PARTS:
        _require(config.model, "model")
    if config.counts is not None and config.predictions_per_client is None:
        raise ConfigError(f"counts = {shown(config.counts)} does nothing without predictions_per_client; leave it out")
    # Without a directory of its own the count is kept beside the settings' file.
    check_answer_rules(replace(config, counts=config.counts or "."), labels=not is_u(config.cut or INPUT))


def _check_client(config: ClientConfig) -> None:
    _check_client_name(config.name, "name")
    _check_cut(config)
    _require(config.model, "model")
    _require(config.data, "data")
    if config.layout == MODEL_PARTS:
        if config.batch_size not in BATCHES:
            sizes = " or ".join(map(str, BATCHES))
            raise ConfigError(f"batch_size = {config.batch_size}: a model in parts predicts {sizes} images a query")
        if not (config.epochs and config.train) and config.weights is None:
            why = "train = false" if not config.train else "epochs = 0"
            raise ConfigError(f"{why} would give a part that was never trained: give its weights, or train it")


def _check_client_name(name: str, where: str) -> None:
    try:
        check_party_name(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if name in (SERVER, DEALER):
        raise ConfigError(f"{where}: a client cannot be called '{name}', which is the name of the {name} itself")


def _check_cut(config: ServerConfig | ClientConfig) -> None:
    if config.layout in ("vertical", MODEL_PARTS):
        if config.cut:
            raise ConfigError(f"a run with layout = '{config.layout}' has no cut of its own; leave it out")
        return
    if not config.cut:
        raise ConfigError("a horizontal run needs a cut: cut = 'NAME'; splitsec cuts lists those of a model")
    two = is_u(config.cut)
    if two and config.layout == "horizontal":
        raise ConfigError(f"cut = '{config.cut}' names two cuts, which make a U: layout = 'u', or leave it out")
    if not two and config.layout == "u":
        raise ConfigError(f"layout = 'u' needs two cuts, such as cut = 'pool,fc2'; '{config.cut}' is one")


def _require(value: str, name: str) -> None:
    if not value:
        raise ConfigError(f'{name} is missing: {name} = "..."')
