"""Encrypted predictions of a user's own model by parties on this machine, beside the same model in plain."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from splitsec.apps.samples import Samples
from splitsec.cut import Signature, SplitModel, check_split, one_tensor, vocabulary
from splitsec.cut.check import ROWS
from splitsec.cut.place import place_of_error
from splitsec.cut.tracer import input_name
from splitsec.errors import ConfigError, RangeError, first_line
from splitsec.events import Predicted, Report
from splitsec.local.prediction_service import Service, start_service
from splitsec.local.processes import PartyGroup
from splitsec.machine import one_thread
from splitsec.models.load import absolute_source, load_model, load_weights
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.program import Engine
from splitsec.parties.client import Client
from splitsec.parties.predictions import Predictions, labels_of
from splitsec.parties.setup import Network, Runtime
from splitsec.settings.query import Query
from splitsec.settings.timeouts import Timeouts
from splitsec.transport import load_key_pair, load_public_keys

NOISE_SAMPLES = 8
RESOLUTION = 2.0**-15
TIMEOUT = 600.0


@dataclass(frozen=True)
class PredictResult:
    """Results and costs of encrypted prediction with a user's model.

    Times are medians in milliseconds a query, with one thread a party, from the image to the result, the client's
    front included.

    `agreement` is the share of images with the same label as in plain, None where a result has no labels;
    `undecided` how many images have their two largest logits in plain closer than fixed point resolves. `total_ms`
    is from the image to the result, offline work included. `ranges` is how values are kept in range.
    """

    model: str
    cut: str
    predictions: int
    agreement: float | None
    undecided: int
    accuracy_plain: float | None
    accuracy_encrypted: float | None
    max_abs_error: float
    plain_ms_median: float
    online_ms_median: float
    offline_ms_median: float
    total_ms_median: float
    rounds: int
    bytes_online: int
    bytes_offline: int
    ranges: str
    seconds: float
    labels: list[int] | None = field(repr=False, default=None)
    labels_plain: list[int] | None = field(repr=False, default=None)


@dataclass(frozen=True, kw_only=True)
class PredictionTask:
    """Which model predicts, and how.

    Attributes:
        source: the model, as `load_model` takes it.
        cut: the name of the cut.
        weights: safetensors of the whole model; without them it is as its function returns it.
        calibration: images that are no client's data, like those to predict, on which the bounds of a deep tail are
            measured; None for noise.
        batch_size: images of a query.
        checked: compare every layer's values with its bound in every query, and name the first that is beyond.
        engine: whose functions layers run through, splitsec's or CrypTen's.
    """

    source: str
    cut: str
    weights: Path | None = None
    calibration: Samples | None = None
    batch_size: int = 1
    checked: bool = False
    engine: Engine = "splitsec"


def predict(
    task: PredictionTask,
    samples: Samples,
    *,
    report: Report,
    on_start: Callable[[str], None] = lambda _what: None,
) -> PredictResult:
    """Start a dealer and a server for the model's tail, and be the client that predicts `samples`.

    Args:
        on_start: called with what begins.

    Raises:
        ConfigError, CutError, UnsupportedLayerError, RangeError: before any process is started.
    """
    began = time.monotonic()
    model = load_model(task.source).eval()
    if task.weights is not None:
        load_weights(model, task.weights)
    split = SplitModel(model, task.cut, sample=_sample_of(samples, model), check=False).eval()
    if split.exported and not split.signature.inputs:
        # The server has no inputs to see the shape of.
        place, signature = Signature.split(task.source)
        signature = replace(Signature.of({input_name(model): samples.images}), output=signature.output)
        task = replace(task, source=f"{place}{signature}")
    rows = vocabulary(split.front)
    samples = samples.fit(model, rows)
    images = samples.images
    activation = _activation(split, images[:1].expand(task.batch_size, *images.shape[1:]))
    check_split(model, split.segments, images, cut=split.cut)
    on_start("compiling the tail")
    measured = _calibration(split, activation, images, task.calibration, rows)
    with tempfile.TemporaryDirectory(prefix="splitsec-predict-") as name, PartyGroup() as group:
        directory = Path(name)
        on_start("starting a dealer and a server")
        service = Service(absolute_source(task.source), split.cut, split.tail, measured)
        dealer, server = start_service(group, directory, service, ("client-1", "client-2"), timeout=TIMEOUT)
        client = Client(
            split.front,
            head=split.head,
            cut=split.cut,
            network=Network(
                keys=load_key_pair(directory / "keys", "client-1"),
                peers=load_public_keys(directory / "keys"),
                server=server,
                dealer=dealer,
                timeouts=Timeouts(timeout=TIMEOUT),
            ),
            runtime=Runtime(report=report),
        )
        on_start("opening a session")
        with client, one_thread():
            query = Query(batch_size=task.batch_size, ahead=0, checked=task.checked, engine=task.engine)
            # All parties share this machine, so to prepare meanwhile would only take turns.
            predictions = client.predict(images, query)
    plain = _in_plain(model, images)
    ranges = (
        "guaranteed by the weights"
        if measured is None
        else f"measured on {'noise' if task.calibration is None else 'the calibration images'}"
    )
    ranges += ", checked in every query" if task.checked else ""
    seconds = time.monotonic() - began
    return _judge(replace(task, cut=split.cut), samples, predictions, plain, ranges=ranges, seconds=seconds)


def _sample_of(samples: Samples, model: nn.Module) -> torch.Tensor:
    """Return the first inputs in the dtype that a model's weights have, or as whole numbers."""
    first = samples.images[:ROWS]
    return first.to(next(model.parameters(), torch.empty(0)).dtype) if first.is_floating_point() else first.long()


def _activation(split: SplitModel, images: torch.Tensor) -> torch.Tensor:
    try:
        with torch.no_grad():
            activation: torch.Tensor = split.front(images)
            split.tail(activation)
    except (RuntimeError, ValueError, IndexError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        place = place_of_error(error.__traceback__)
        where = f", at {place}" if place else ""
        gpu = "NVIDIA" in str(error) or "CUDA" in str(error)
        raise ConfigError(
            f"the model cannot take images of shape {shape}{where}: {first_line(error)}"
            f"{'; all parties predict on processors: write x.to(weight.device) for x.cuda()' if gpu else ''}"
        ) from error
    if activation.shape[0] != len(images) or not activation.is_floating_point():
        shape = "x".join(map(str, activation.shape))
        raise ConfigError(f"the value at cut '{split.cut}' ({activation.dtype}, {shape}) is no batch of real numbers")
    return activation


def _calibration(
    split: SplitModel,
    activation: torch.Tensor,
    images: torch.Tensor,
    calibration: Samples | None,
    rows: int | None,
) -> torch.Tensor | None:
    """Activations to measure bounds on, or None where the weights guarantee bounds.

    Noise is as large as the images are, to the next power of two, and says nothing else of them.
    """
    if calibration is not None:
        likely = calibration.fit(split, rows).images
    elif split.signature.inputs:
        likely = split.signature.noise_like(images, NOISE_SAMPLES).to(images.dtype)
    elif rows is not None:
        likely = torch.randint(0, rows, (NOISE_SAMPLES, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
    else:
        spread = 2.0 ** round(np.log2(max(1e-6, images.double().std().item())))
        noise = torch.randn(NOISE_SAMPLES, *images.shape[1:], generator=torch.Generator().manual_seed(0))
        likely = (noise * spread).to(images.dtype)
    with torch.no_grad():
        activations = torch.cat([split.front(row[None]) for row in likely])
    try:
        program, _ = compile_tail(split.tail, tuple(activation.shape), calibration=activations)
    except RangeError as error:
        # Other images change nothing where the weights themselves cannot be, or images are given already.
        helps = calibration is None and "calibrat" in str(error)
        raise RangeError(f"{error}{'; give --calibration images like those to predict' if helps else ''}") from error
    return None if program.guaranteed else activations


@dataclass(frozen=True)
class _Plain:
    """What the model says in plain, (N, ...), and the median time of one image."""

    logits: torch.Tensor
    milliseconds: float


def _in_plain(model: nn.Module, images: torch.Tensor) -> _Plain:
    results, times = [], []
    with torch.no_grad(), one_thread():
        for image in images:
            began = time.perf_counter()
            results.append(one_tensor(model(image[None])))
            times.append((time.perf_counter() - began) * 1e3)
    return _Plain(torch.cat(results).float(), median(times))


def _labels(logits: torch.Tensor) -> torch.Tensor | None:
    """Return the label of each sample, if results are rows of logits."""
    return labels_of(logits) if logits.dim() <= 2 else None


def _undecided(logits: torch.Tensor) -> int:
    if _labels(logits) is None:
        return 0
    if logits.dim() == 1 or logits.shape[1] == 1:
        return int((logits.abs() < RESOLUTION).sum())
    first = logits.topk(2, 1).values
    return int((first[:, 0] - first[:, 1] < RESOLUTION).sum())


def _judge(
    task: PredictionTask, samples: Samples, predictions: Predictions, plain: _Plain, *, ranges: str, seconds: float
) -> PredictResult:
    assert predictions.logits is not None
    times = zip(predictions.online_ms, predictions.offline_ms, strict=True)
    encrypted_labels, plain_labels, truth = _labels(predictions.logits), _labels(plain.logits), samples.labels

    def share(labels: torch.Tensor | None, others: torch.Tensor | None) -> float | None:
        return None if labels is None or others is None else (labels == others).double().mean().item()

    return PredictResult(
        model=task.source,
        cut=task.cut,
        predictions=len(samples.images),
        agreement=share(encrypted_labels, plain_labels),
        undecided=_undecided(plain.logits),
        accuracy_plain=share(plain_labels, truth),
        accuracy_encrypted=share(encrypted_labels, truth),
        max_abs_error=(predictions.logits - plain.logits).abs().max().item(),
        plain_ms_median=plain.milliseconds,
        online_ms_median=predictions.online_ms_median,
        offline_ms_median=predictions.offline_ms_median,
        total_ms_median=median(online + offline for online, offline in times),
        rounds=predictions.rounds,
        bytes_online=predictions.bytes_sent + predictions.bytes_received,
        bytes_offline=predictions.bytes_offline,
        ranges=ranges,
        seconds=seconds,
        labels=None if encrypted_labels is None else encrypted_labels.tolist(),
        labels_plain=None if plain_labels is None else plain_labels.tolist(),
    )


def as_json(result: PredictResult) -> dict[str, object]:
    """Return the result as it is written to a file."""
    return asdict(result)


def counted(report: Callable[[int, int], None]) -> Report:
    """Events of a client, of which only the number of predictions is told."""

    def note(event: object) -> None:
        if isinstance(event, Predicted):
            report(event.done, event.total)

    return note
