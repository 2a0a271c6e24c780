"""Running a party from its settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import fx, nn

from splitsec.cut import (
    INPUT,
    ConstantError,
    Origin,
    SplitModel,
    build_segment,
    is_u,
    load_part,
    origin_of,
    set_origin,
)
from splitsec.cut.origin import whole_origin
from splitsec.cut.segments import Part
from splitsec.errors import ConfigError
from splitsec.models import absolute_source, load_model, load_weights
from splitsec.parties.checking import check_directories, check_own_data, claim_directories, load_calibration
from splitsec.parties.client import Client, Predictions
from splitsec.parties.config import ClientConfig, DealerConfig, ServerConfig, Topology
from splitsec.parties.dealer import Dealer
from splitsec.parties.events import Finished, Report
from splitsec.parties.halves import HalvesClient
from splitsec.parties.machine import settle
from splitsec.parties.names import DEALER, SERVER
from splitsec.parties.results import save_predictions
from splitsec.parties.running_columns import load_columns_model, run_columns
from splitsec.parties.server import Server
from splitsec.privacy.activations import Guard
from splitsec.tensors import SAVE_WEIGHTS, read_tensors
from splitsec.training import data, vertical
from splitsec.training.randomness import derived_seed
from splitsec.training.schedule import Schedule
from splitsec.training.segment_files import Role, check_role, origin_of_file, read_segment, save_segment
from splitsec.transport import load_key_pair, load_public_keys

log = logging.getLogger(__name__)
_HELD_OUT = Schedule(clients=()).held_out


def make_dealer(config: DealerConfig, base: Path, report: Report) -> Dealer:
    """The dealer of a TOML file; paths in it are relative to `base`."""
    keys = base / config.keys
    check_directories(base, checkpoints=config.checkpoints)
    return Dealer(
        keys=load_key_pair(keys, DEALER),
        peers=load_public_keys(keys),
        address=config.address,
        minimum=config.minimum,
        checkpoints=_beside(base, config.checkpoints),
        report=report,
    )


def make_server(config: ServerConfig, base: Path, report: Report, *, processors: Sequence[int] | None = None) -> Server:
    """The server of a TOML file; paths in it are relative to `base`, `processors` as in `Server`."""
    config = msgspec.structs.replace(config, model=absolute_source(config.model, base))
    keys = base / config.keys
    pair, peers = load_key_pair(keys, SERVER), load_public_keys(keys)
    check_directories(base, out=config.out, checkpoints=config.checkpoints)
    claim_directories(base, SERVER, checkpoints=config.checkpoints)
    shared = {name: getattr(config, name) for name in Schedule.__struct_fields__ if hasattr(config, name)}
    _check_cut(config.topology, config.cut)
    tail: fx.GraphModule | None = None
    cut = INPUT
    if config.topology == "vertical":
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
        shared |= {"join": model.join, "combine": "none"}
    elif config.topology == "halves":
        shared |= {"halves": True, "epochs": 0, "combine": "none"}
    else:
        _check_trained(config)
        cut, (tail,) = make_segments(config.model, config.cut, config.seed, ("tail",), _beside(base, config.weights))
    return Server(
        tail,
        cut=cut,
        schedule=Schedule(**shared),
        keys=pair,
        peers=peers,
        address=config.address,
        dealer=config.dealer,
        timeout=config.timeout,
        round_timeout=config.round_timeout,
        join_timeout=config.join_timeout,
        checkpoints=_beside(base, config.checkpoints),
        seed=None if config.seed is None else derived_seed("tail", config.seed),
        stay=config.stay,
        predictions_per_client=config.predictions_per_client,
        counts=base if config.counts is None else base / config.counts,
        answers=config.answers,
        answer_bits=config.answer_bits,
        session_ports=config.session_ports,
        calibration=None if config.calibration is None else load_calibration(base / config.calibration),
        processors=processors,
        report=report,
    )


def run_dealer(config: DealerConfig, base: Path, report: Report) -> None:
    """Serve until interrupted."""
    settle(config.threads, config.cpu)
    make_dealer(config, base, report).serve()


def run_server(config: ServerConfig, base: Path, report: Report) -> None:
    """Run the schedule; the trained tail is saved even when predictions are interrupted."""
    processors = settle(config.threads, config.cpu)
    began = time.monotonic()
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
    _check_cut(config.topology, config.cut)
    check_directories(base, out=config.out, checkpoints=config.checkpoints, ledgers=config.ledgers)
    claim_directories(base, config.name, out=config.out, checkpoints=config.checkpoints, ledgers=config.ledgers)
    config = msgspec.structs.replace(config, model=absolute_source(config.model, base))
    runs = {"horizontal": _run_rows, "vertical": run_columns, "halves": _run_half}
    runs[config.topology](config, base, report, processors)
    report(Finished(config.name, time.monotonic() - began))


def _run_rows(config: ClientConfig, base: Path, report: Report, processors: Sequence[int] | None) -> None:
    keys = base / config.keys
    pair, peers = load_key_pair(keys, config.name), load_public_keys(keys)
    part = data.Part.load(base / config.data)
    wanted: tuple[Part, ...] = ("front", "head") if is_u(config.cut) else ("front",)
    check_own_data(part, config, base)
    _check_trained(config)
    weights = _beside(base, config.weights)
    sample = part.train_images if len(part.train_images) else part.test_images
    cut, segments = make_segments(
        config.model, config.cut, config.seed, wanted, weights, sample=sample, party=config.name
    )
    with Client(
        segments[0],
        head=segments[1] if len(segments) == 2 else None,
        cut=cut,
        keys=pair,
        peers=peers,
        server=config.server,
        dealer=config.dealer,
        timeout=config.timeout,
        join_timeout=config.join_timeout,
        processors=processors,
        report=report,
    ) as client:
        if config.train:
            schedule = client.train(
                part,
                seed=derived_seed(config.name, config.seed),
                repeatable=config.repeatable,
                checkpoints=_beside(base, config.checkpoints),
                ledgers=_beside(base, config.out if config.ledgers is None else config.ledgers),
                epsilon_limit=config.epsilon_limit,
            )
            if config.out is not None:
                state = {key: value for segment in segments for key, value in segment.state_dict().items()}
                _save_front(config, base, cut, segments[0], state, own=schedule.combine == "none")
        elif config.activation_clip:
            Guard(segments[0], clip=config.activation_clip)
        count = len(part.test_images) if config.predictions is None else config.predictions
        images = part.test_images[:count]
        if len(images):
            found = client.predict(
                images,
                batch_size=config.batch_size,
                ahead=config.ahead,
                reveal=config.reveal,
                checked=config.checked,
                comparison=config.comparison,
            )
            _save_predictions(found, config, base)
        client.leave()


def _run_half(config: ClientConfig, base: Path, report: Report, processors: Sequence[int] | None) -> None:
    keys = base / config.keys
    part = data.Part.load(base / config.data)
    # Each client's own first weights: two parts alike would learn the same.
    torch.manual_seed(derived_seed(f"weights of {config.name}", config.seed))
    half = load_model(config.model)
    if config.weights is not None:
        load_weights(half, base / config.weights)
    check_own_data(part, config, base)
    SplitModel(half, INPUT, sample=part.train_images)
    with HalvesClient.of(
        half,
        keys=load_key_pair(keys, config.name),
        peers=load_public_keys(keys),
        server=config.server,
        dealer=config.dealer,
        timeout=config.timeout,
        processors=processors,
        report=report,
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
            _save_predictions(client.predict(images, batch_size=config.batch_size, ahead=config.ahead), config, base)
        client.leave()


def _check_cut(topology: Topology, cut: str) -> None:
    if (topology == "horizontal") != bool(cut):
        wants = "needs a cut: cut = 'NAME'" if not cut else "has no cut of its own; leave it out"
        raise ConfigError(f"a {topology} run {wants}")


def _save_front(
    config: ClientConfig, base: Path, cut: str, front: nn.Module, state: Mapping[str, torch.Tensor], *, own: bool
) -> None:
    assert config.out is not None
    path = base / config.out / "front.safetensors"
    save_segment(path, state, role="front", party=config.name, cut=cut, origin=origin_of(front), own=own)


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
    """The cut as all parties call it, and the wanted segments as `seed` makes their first weights, or with those of a
    file, where the others are built for a moment only, to compare the segments with the model on a `sample` (N, ...) of
    its inputs."""
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
