"""Running a party from its settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import fx, nn

from splitsec.cut import (
    INPUT,
    ConstantError,
    Origin,
    Signature,
    SplitModel,
    build_segment,
    is_u,
    load_part,
    origin_of,
    set_origin,
)
from splitsec.cut import joined as vertical
from splitsec.cut.build import Part, refuse_guessed
from splitsec.cut.origin import whole_origin
from splitsec.cut.segment_files import FrontFacts, Role, check_role, origin_of_file, read_segment, save_segment
from splitsec.data import rows as data
from splitsec.errors import ConfigError
from splitsec.events import Finished, Report, RoundDone, with_first
from splitsec.machine import freeze_loaded, settle
from splitsec.models.load import absolute_source, load_model, load_weights
from splitsec.parties.client import Client
from splitsec.parties.dealer import Dealer
from splitsec.parties.model_part_client import HalvesClient
from splitsec.parties.predictions import Predictions
from splitsec.parties.result_files import save_predictions
from splitsec.parties.run_columns import load_columns_model, run_columns
from splitsec.parties.server import Server
from splitsec.parties.setup import Runtime, Serving, network_of, storage_of
from splitsec.parties.start_checks import check_directories, check_own_data, claim_directories, load_calibration
from splitsec.party_names import DEALER, SERVER
from splitsec.privacy.activation_guard import Guard
from splitsec.randomness import derived_seed
from splitsec.settings.answers import AnswerRules
from splitsec.settings.parties import ClientConfig, DealerConfig, ServerConfig
from splitsec.settings.query import Query, check_query
from splitsec.settings.run import MODEL_PARTS, RunSettings
from splitsec.settings.setting import part_of
from splitsec.tensors import SAVE_WEIGHTS, read_tensors

log = logging.getLogger(__name__)
_HELD_OUT = RunSettings(clients=()).held_out


def make_dealer(config: DealerConfig, base: Path, report: Report) -> Dealer:
    """Return the dealer of a TOML file; paths in it are relative to `base`."""
    check_directories(base, checkpoints=config.checkpoints)
    return Dealer(
        network_of(config, base, DEALER),
        minimum_clients=config.minimum_clients,
        storage=storage_of(config, base),
        report=report,
    )


def make_server(config: ServerConfig, base: Path, report: Report, *, processors: Sequence[int] | None = None) -> Server:
    """Return the server of a TOML file; paths in it are relative to `base`, `processors` as in `Server`."""
    config = replace(config, model=absolute_source(config.model, base))
    network = network_of(config, base, SERVER)
    check_directories(base, out=config.out, checkpoints=config.checkpoints)
    claim_directories(base, SERVER, checkpoints=config.checkpoints)
    settings = part_of(config, RunSettings)
    tail: fx.GraphModule | None = None
    cut = INPUT
    if config.layout == "vertical":
        model = load_columns_model(config.model, config.seed)
        cut, tail = vertical.CUT, SplitModel(model.tail, INPUT).tail
        if config.weights is not None:
            values, record = read_segment(base / config.weights, role="tail", cut=cut)
            load_part(tail, values)
            set_origin(tail, record.origin)
        elif not config.epochs:
            raise ConfigError(untrained("epochs = 0", "tail"))
        if not config.epochs and config.held_out != _HELD_OUT:
            log.warning("held_out = %g does nothing: with epochs = 0 all common rows are predicted", config.held_out)
        if config.join not in (None, model.join):
            raise ConfigError(f'join = "{config.join}", but the model joins by "{model.join}"; leave it out')
        settings = replace(settings, join=model.join, aggregation="none")
    elif config.layout == MODEL_PARTS:
        settings = replace(settings, epochs=0, aggregation="none")
    else:
        _check_trained(config)
        cut, (tail,) = make_segments(config.model, config.cut, config.seed, ("tail",), _beside(base, config.weights))
    return Server(
        tail,
        cut=cut,
        settings=settings,
        network=network,
        serving=Serving(
            rules=replace(part_of(config, AnswerRules), counts=str(base / (config.counts or ""))),
            calibration=None if config.calibration is None else load_calibration(base / config.calibration),
        ),
        storage=storage_of(config, base),
        runtime=Runtime(
            seed=None if config.seed is None else derived_seed("tail", config.seed),
            processors=processors,
            report=report,
        ),
    )


def run_dealer(config: DealerConfig, base: Path, report: Report) -> None:
    """Serve until interrupted."""
    settle(config.threads, config.cpu)
    make_dealer(config, base, report).serve()


def run_server(config: ServerConfig, base: Path, report: Report) -> None:
    """Run the training; the trained tail is saved even when predictions are interrupted."""
    processors = settle(config.threads, config.cpu)
    began = time.monotonic()
    # Libraries load parts of themselves with the first steps; a look at all of it takes as long as many steps.
    report = with_first(report, RoundDone, freeze_loaded)
    server = make_server(config, base, report, processors=processors)

    def save_tail() -> None:
        if config.out is not None and server.tail is not None:
            save_segment(
                base / config.out / "tail.safetensors",
                server.tail.state_dict(),
                role="tail",
                party=SERVER,
                cut=server.cut,
                origin=origin_of(server.tail),
            )

    server.serve(on_trained=save_tail)
    report(Finished(SERVER, time.monotonic() - began))


def run_client(config: ClientConfig, base: Path, report: Report) -> None:
    """Train, then predict what is held out encrypted; front and predictions are saved under `out`."""
    processors = settle(config.threads, config.cpu)
    began = time.monotonic()
    check_directories(base, out=config.out, checkpoints=config.checkpoints, ledgers=config.ledgers)
    claim_directories(base, config.name, out=config.out, checkpoints=config.checkpoints, ledgers=config.ledgers)
    # Before the training, which may take hours, rather than after it.
    check_query(part_of(config, Query))
    config = replace(config, model=absolute_source(config.model, base))
    report = with_first(report, RoundDone, freeze_loaded)
    runs = {None: _run_rows, "vertical": run_columns, MODEL_PARTS: _run_half}
    runs[config.layout](config, base, report, processors)
    report(Finished(config.name, time.monotonic() - began))


def _run_rows(config: ClientConfig, base: Path, report: Report, processors: Sequence[int] | None) -> None:
    network = network_of(config, base, config.name)
    part = data.Part.load(base / config.data, Signature.split(config.model)[1])
    roles: tuple[Part, ...] = ("front", "head") if is_u(config.cut) else ("front",)
    check_own_data(part, config, base)
    _check_trained(config)
    weights = _beside(base, config.weights)
    sample = part.train_images if len(part.train_images) else part.test_images
    cut, segments = make_segments(
        config.model, config.cut, config.seed, roles, weights, sample=sample, party=config.name
    )
    with Client(
        segments[0],
        head=segments[1] if len(segments) == 2 else None,
        cut=cut,
        network=network,
        runtime=Runtime(processors=processors, report=report),
    ) as client:
        if config.train:
            settings = client.train(
                part,
                seed=derived_seed(config.name, config.seed),
                repeatable=config.repeatable,
                storage=storage_of(config, base),
            )
            if config.out is not None:
                state = {key: value for segment in segments for key, value in segment.state_dict().items()}
                _save_front(config, base, cut, segments[0], state, own=not settings.rule.combines)
        elif config.activation_clip:
            Guard(segments[0], clip=config.activation_clip)
        count = len(part.test_images) if config.predictions is None else config.predictions
        images = part.test_images[:count]
        if len(images):
            predictions = client.predict(images, part_of(config, Query))
            _save_predictions(predictions, config, base)
        client.leave()


def _run_half(config: ClientConfig, base: Path, report: Report, processors: Sequence[int] | None) -> None:
    part = data.Part.load(base / config.data, Signature.split(config.model)[1])
    # Each client's own first weights: two parts alike would learn the same.
    torch.manual_seed(derived_seed(f"weights of {config.name}", config.seed))
    half = load_model(config.model)
    if config.weights is not None:
        load_weights(half, base / config.weights)
    check_own_data(part, config, base)
    SplitModel(half, INPUT, sample=part.train_images)
    with HalvesClient.of(
        half,
        network=network_of(config, base, config.name),
        runtime=Runtime(processors=processors, report=report),
    ) as client:
        if config.train and config.epochs:
            client.learn(
                part,
                epochs=config.epochs,
                batch_size=config.train_batch_size,
                learning_rate=config.learning_rate,
                seed=derived_seed(config.name, config.seed),
                repeatable=config.repeatable,
            )
        if config.out is not None:
            save_segment(
                base / config.out / "half.safetensors",
                half.state_dict(),
                role="part",
                party=config.name,
                cut=INPUT,
                origin=Origin(),
            )
        client.give(part)
        images = part.test_images[: len(part.test_images) if config.predictions is None else config.predictions]
        if len(images):
            _save_predictions(client.predict(images, part_of(config, Query)), config, base)
        client.leave()


def _save_front(
    config: ClientConfig, base: Path, cut: str, front: nn.Module, state: Mapping[str, torch.Tensor], *, own: bool
) -> None:
    assert config.out is not None
    path = base / config.out / "front.safetensors"
    save_segment(
        path, state, role="front", party=config.name, cut=cut, origin=origin_of(front), front=FrontFacts(own=own)
    )


def untrained(setting: str, segment: str) -> str:
    """Say that a segment with random values would answer predictions, and what to do."""
    return (
        f"with {setting} and no weights the {segment} would be untrained, and every prediction a guess: give weights = "
        f"'{segment}.safetensors', as the run that trained it saved it, or those of the whole model"
    )


def _check_trained(config: ServerConfig | ClientConfig) -> None:
    """Raise `ConfigError` where predictions would be made with values that nobody has trained."""
    serving = isinstance(config, ServerConfig)
    training = config.epochs > 0 if isinstance(config, ServerConfig) else config.train
    if training or config.weights is not None or _has_own_weights(config.model):
        return
    raise ConfigError(untrained("epochs = 0", "tail") if serving else untrained("train = false", "front"))


def _has_own_weights(source: str) -> bool:
    """Whether a model loads values of its own while it is made: then they do not depend on torch's generator."""
    marks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        marks.append(whole_origin(load_model(source).state_dict()).mark)
    return marks[0] == marks[1]


def _save_predictions(predictions: Predictions, config: ClientConfig, base: Path) -> None:
    if config.out is not None:
        save_predictions(predictions, base / config.out)


def make_segments(
    model: str,
    cut: str,
    seed: int | None,
    wanted: tuple[Part, ...],
    weights: Path | None = None,
    *,
    sample: torch.Tensor | None = None,
    party: str = "",
) -> tuple[str, list[fx.GraphModule]]:
    """Return the cut as all parties call it.

    And the wanted segments as `seed` makes their first weights, or with those of a file, where the others are built for
    a moment only, to compare the segments with the model on a `sample` (N, ...) of its inputs.
    """
    role: Role = "tail" if "tail" in wanted else "front"
    sample = sample if sample is not None and len(sample) else None
    if weights is not None:
        check_role(weights, role)
        if sample is not None:
            SplitModel(load_model(model), cut, sample=sample)
        try:
            parts = [build_segment(partial(load_model, model), cut, part, weights=weights) for part in wanted]
        except ConstantError as error:
            log.info("the whole model is built: %s", error)
        else:
            name = parts[0].meta["cut"]
            _remember(parts, origin_of_file(weights, role=role, cut=name, whole=parts[0].meta["whole"], party=party))
            return name, parts
    _seed_weights(seed)
    whole = load_model(model)
    split = SplitModel(whole, cut, sample=sample)
    if sample is None:
        refuse_guessed(split, whole)
    if not split.checked:
        log.info("the segments are not compared with the model, for which no sample of inputs can be made")
    segments = [getattr(split, part) for part in wanted]
    if weights is not None:
        values = _load_weights(weights)
        for segment in segments:
            load_part(segment, values)
        _remember(
            segments, origin_of_file(weights, role=role, cut=split.cut, whole=whole.state_dict().keys(), party=party)
        )
    return split.cut, segments


def _remember(segments: Sequence[fx.GraphModule], origin: Origin) -> None:
    for segment in segments:
        architecture = origin_of(segment).architecture or origin.architecture
        set_origin(segment, replace(origin, architecture=architecture))


def _seed_weights(seed: int | None) -> None:
    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)


def _beside(base: Path, path: str | None) -> Path | None:
    return None if path is None else base / path


def _load_weights(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(path, "weights", SAVE_WEIGHTS)
