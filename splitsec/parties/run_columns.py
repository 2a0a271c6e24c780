"""Running a client with columns from its settings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from splitsec.cut import load_part, origin_of, set_origin
from splitsec.cut.joined import CUT, VerticalModel
from splitsec.cut.segment_files import FrontFacts, read_record, read_segment, save_segment
from splitsec.data.column_checks import check_classes
from splitsec.data.columns import Columns
from splitsec.data.standardisation import Scaling, Standardisation
from splitsec.errors import ConfigError
from splitsec.events import Report
from splitsec.models.load import load_model
from splitsec.parties.columns_client import ColumnsClient
from splitsec.parties.result_files import save_predictions
from splitsec.parties.setup import Runtime, network_of, storage_of
from splitsec.randomness import derived_seed
from splitsec.settings.parties import ClientConfig
from splitsec.settings.query import Query
from splitsec.settings.setting import part_of, values_of
from splitsec.tensors import SAVE_WEIGHTS, read_tensors

log = logging.getLogger(__name__)
_OF_WHO_ASKS = ("predictions", "batch_size", "ahead", "reveal", "checked", "comparison", "engine")


def run_columns(config: ClientConfig, base: Path, report: Report, processors: Sequence[int] | None) -> None:
    """Train, or with `train = false` only align rows; then the client that asks predicts, and the others contribute.

    That one asks whose data has labels, unless `ask` says otherwise. After training the rows that were held out are
    predicted; without training all that all clients have.
    """
    network = network_of(config, base, config.name)
    model = load_columns_model(config.model, config.seed)
    if config.name not in model.fronts:
        raise ConfigError(f"the model has no front for {config.name}; it has: {', '.join(model.fronts)}")
    front = model.fronts[config.name]
    columns = _load_columns(config, base, model)
    asks = columns.labels is not None if config.ask is None else config.ask
    if not asks:
        _warn_idle(config)
    with ColumnsClient(
        front,
        cut=CUT,
        network=network,
        runtime=Runtime(processors=processors, report=report),
    ) as client:
        client.asks = asks
        if config.train:
            client.train(
                columns,
                seed=derived_seed(config.name, config.seed),
                repeatable=config.repeatable,
                storage=storage_of(config, base),
            )
            if config.out is not None:
                save_segment(
                    base / config.out / "front.safetensors",
                    front.state_dict(),
                    role="front",
                    party=config.name,
                    cut=CUT,
                    origin=origin_of(front),
                    front=FrontFacts(columns=client.standardisation.as_json()),
                )
        else:
            client.align(columns)
        if asks:
            _predict(client, config, base)
        else:
            client.contribute()
        client.leave()


def _load_columns(config: ClientConfig, base: Path, model: VerticalModel) -> Columns:
    """Return the client's columns, and how they are scaled; raises `ConfigError` where they do not fit the model."""
    columns = Columns.load(base / config.data)
    scaling = Scaling(standardise=config.standardise, codes=config.codes)
    if config.weights is not None:
        standardisation = _load_front(model.fronts[config.name], base / config.weights, config)
        scaling = replace(scaling, given=standardisation)
    elif not config.train:
        raise ConfigError(
            "with train = false and no weights the front would be untrained, and every prediction a guess: give "
            "weights = 'front.safetensors', as the run that trained it saved it"
        )
    if scaling.given is not None and (not config.standardise or config.codes):
        name = "codes" if config.codes else "standardise"
        raise ConfigError(
            f"{name} does nothing with weights of a run, which say what is done to the columns; leave it out"
        )
    if config.train and columns.labels is not None:
        try:
            check_classes(columns.labels, model.tail)
        except ConfigError as error:
            raise ConfigError(f"{base / config.data}: {error}") from None
    return replace(columns, scaling=scaling)


def load_columns_model(source: str, seed: int | None) -> VerticalModel:
    """Return the vertical model that a source makes, with first weights from the seed.

    Raises `ConfigError` for another.
    """
    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)
    model = load_model(source)
    if not isinstance(model, VerticalModel):
        raise ConfigError(f"'{source}' makes a {type(model).__name__}; a vertical run needs a splitsec VerticalModel")
    return model


def _warn_idle(config: ClientConfig) -> None:
    """Say which settings do nothing at a client that contributes to the predictions that another asks for.

    They are not refused, so that all clients may have the same file but for name and data.
    """
    idle = [
        described.name
        for described, value in values_of(config)
        if described.name in _OF_WHO_ASKS and value != described.default
    ]
    if idle:
        log.warning(
            "%s: another client asks for the predictions, so %s do%s nothing here",
            config.name,
            ", ".join(idle),
            "es" if len(idle) == 1 else "",
        )


def _predict(client: ColumnsClient, config: ClientConfig, base: Path) -> None:
    rows = range(client.training_rows, len(client.columns.ids))
    if config.predictions is not None and config.predictions > len(rows):
        log.warning("predictions = %d, but %d rows are there to predict", config.predictions, len(rows))
    rows = rows[: len(rows) if config.predictions is None else config.predictions]
    if not rows:
        if config.predictions != 0:
            log.warning("no row is held out, so there is nothing to predict: held_out at the server says how many are")
        return
    predictions = client.predict_rows(rows, part_of(config, Query))
    if config.out is not None:
        save_predictions(predictions, base / config.out)


def _load_front(front: nn.Module, path: Path, config: ClientConfig) -> Standardisation | None:
    """Give the front the values of a file; the mean and spread that its columns had when it was trained, if it was.

    Raises:
        ConfigError: it is the front of another client; or no run has trained it, where nothing is to be trained.
    """
    record = read_record(path)
    if record is None:
        if not config.train:
            raise ConfigError(
                f"{path} has no record of the run that trained it, nor of its columns' mean and spread: give the "
                "front.safetensors that the run saved"
            )
        load_part(front, read_tensors(path, "weights", SAVE_WEIGHTS))
        return None
    values, record = read_segment(path, role="front", cut=CUT)
    if record.party != config.name:
        raise ConfigError(f"{path} holds the front of {record.party}, and this is {config.name}")
    load_part(front, values)
    set_origin(front, record.origin)
    if record.columns is None:
        raise ConfigError(f"{path} lacks the mean and spread of the front's columns; train again to have them saved")
    try:
        return Standardisation.from_json(record.columns)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _beside(base: Path, path: str | None) -> Path | None:
    return None if path is None else base / path
