"""The demo's figures: what the run opened against the same model in plain, which only the demo may put together."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from splitsec.cut import SplitModel
from splitsec.cut.joined import VerticalModel
from splitsec.data.columns import Columns, split_aligned
from splitsec.data.loaders import Loader
from splitsec.data.rows import Part
from splitsec.local.run import LocalRun, load_vertical
from splitsec.local.simulation import SERVER_SEED
from splitsec.machine import one_thread
from splitsec.models.load import load_model
from splitsec.parties.model_part_client import Whole
from splitsec.parties.run_columns import load_columns_model
from splitsec.party_names import SERVER
from splitsec.privacy.activation_guard import Guard
from splitsec.settings.run import MODEL_PARTS


@dataclass(frozen=True)
class Judged:
    """Accuracy and cost of the trained model; what is encrypted is None where nothing was predicted so.

    Attributes:
        accuracy_held_out: plain, of all held-out rows, whether they were predicted encrypted or not.
        batch: rows of a query.
        auc: of two classes, encrypted or else plain; None for more.
        auc_joined: the same of the same model trained by plain torch on the joined columns; None but for columns.
    """

    accuracy_plain: float
    accuracy_held_out: float
    accuracy_encrypted: float | None
    agreement: float | None
    max_abs_error: float | None
    encrypted_predictions: int
    batch: int
    plain_ms_median: float
    online_ms_median: float | None
    offline_ms_median: float | None
    total_ms_median: float | None
    rounds: int | None
    bytes_online: int | None
    bytes_offline: int | None
    auc: float | None
    auc_joined: float | None


def judge(run: LocalRun, directory: Path, parts: list[Part] | list[Columns]) -> Judged:
    """Return the figures of a run of processes, from what its parties wrote."""
    if run.layout == "vertical":
        model, inputs, labels, joined = _columns(run, directory, [part for part in parts if isinstance(part, Columns)])
        return _judged(directory, model, inputs, [labels], run.names[:1], auc_joined=joined)
    rows = [part for part in parts if isinstance(part, Part)]
    if run.layout == MODEL_PARTS:
        halves = [load_model(run.model) for _ in run.names]
        for name, half in zip(run.names, halves, strict=True):
            half.load_state_dict(load_file(directory / name / "out" / "half.safetensors"))
        whole: nn.Module = Whole(halves)
    else:
        split = SplitModel(load_model(run.model), run.where, check=False)
        front = load_file(directory / run.names[0] / "out" / "front.safetensors")
        tail = load_file(directory / SERVER / "out" / "tail.safetensors")
        split.load_whole_state_dict({**front, **tail})
        if run.privacy.activation_clip:
            Guard(split.front, clip=run.privacy.activation_clip)
        whole = split
    inputs = [(part.test_images,) for part in rows]
    return _judged(directory, whole, inputs, [part.test_labels for part in rows], run.names)


def judge_plain(model: nn.Module, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> Judged:
    """Return the figures of a model that was trained in a simulation: nothing is encrypted."""
    plain, milliseconds = _plain(model, [inputs])
    return Judged(
        accuracy_plain=share(plain.argmax(1) == labels),
        accuracy_held_out=share(plain.argmax(1) == labels),
        accuracy_encrypted=None,
        agreement=None,
        max_abs_error=None,
        encrypted_predictions=0,
        batch=1,
        plain_ms_median=milliseconds,
        online_ms_median=None,
        offline_ms_median=None,
        total_ms_median=None,
        rounds=None,
        bytes_online=None,
        bytes_offline=None,
        auc=auc_of(plain, labels),
        auc_joined=None,
    )


def share(hits: torch.Tensor) -> float:
    """Return the fraction of ones."""
    return hits.double().mean().item()


def auc_of(logits: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Return the area under the ROC curve of two classes; None for more, or where only one occurs."""
    if logits.shape[1] != 2 or len(set(labels.tolist())) != 2:
        return None
    # Loaded here, since it takes a second that most commands need not spend.
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))


def _judged(
    directory: Path,
    model: nn.Module,
    inputs: list[tuple[torch.Tensor, ...]],
    labels: list[torch.Tensor],
    asking: list[str],
    *,
    auc_joined: float | None = None,
) -> Judged:
    encrypted = []
    online, offline = [], []
    cost: dict[str, Any] = {}
    for name in asking:
        with safe_open(directory / name / "out" / "predictions.safetensors", "pt") as file:
            logits, cost = file.get_tensor("logits"), json.loads(file.metadata()["json"])
        encrypted.append(logits)
        online += cost["online_ms"]
        offline += cost["offline_ms"]
    # In plain every held-out row, encrypted the first ones of each client.
    every, milliseconds = _plain(model, inputs)
    counts = [len(part) for part in encrypted]
    parts = every.split([len(label) for label in labels])
    plain = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    opened = torch.cat(encrypted)
    right = torch.cat([part[:count] for part, count in zip(labels, counts, strict=True)])
    queries = max(1, len(online))
    return Judged(
        accuracy_plain=share(plain.argmax(1) == right),
        accuracy_held_out=share(every.argmax(1) == torch.cat(labels)),
        accuracy_encrypted=share(opened.argmax(1) == right),
        agreement=share(opened.argmax(1) == plain.argmax(1)),
        max_abs_error=(opened - plain).abs().max().item(),
        encrypted_predictions=len(opened),
        batch=-(-len(opened) // queries),
        plain_ms_median=milliseconds,
        online_ms_median=median(online),
        offline_ms_median=median(offline),
        total_ms_median=median(spent + other for spent, other in zip(online, offline, strict=True)),
        rounds=cost["rounds"],
        bytes_online=cost["bytes_sent"] + cost["bytes_received"],
        bytes_offline=cost["bytes_offline"],
        auc=auc_of(opened, right),
        auc_joined=auc_joined,
    )


def _plain(model: nn.Module, inputs: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, float]:
    """Logits of all rows, and the median milliseconds of one."""
    model.eval()
    together = tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
    times = []
    with torch.no_grad(), one_thread():
        for row in range(min(200, len(together[0]))):
            start = time.perf_counter()
            model(*(columns[row : row + 1] for columns in together))
            times.append((time.perf_counter() - start) * 1e3)
        return model(*together), median(times)


def _columns(
    run: LocalRun, directory: Path, parts: list[Columns]
) -> tuple[VerticalModel, list[tuple[torch.Tensor, ...]], torch.Tensor, float | None]:
    """Return the trained model, the held-out rows, their labels, and the AUC of the joined training."""
    model = load_vertical(run.model)
    for name in run.names:
        model.fronts[name].load_state_dict(load_file(directory / name / "out" / "front.safetensors"))
    model.tail.load_state_dict(load_file(directory / SERVER / "out" / "tail.safetensors"))
    aligned, count = align_in_plain(run, parts)
    labels = aligned[0].labels
    assert labels is not None
    joined = train_joined(run, aligned, count).eval()
    held_out = tuple(columns.values[count:] for columns in aligned)
    with torch.no_grad():
        auc = auc_of(joined(*held_out), labels[count:])
    return model, [held_out], labels[count:], auc


def align_in_plain(run: LocalRun, parts: list[Columns]) -> tuple[list[Columns], int]:
    """Return the clients' columns with rows in one order, by all their ids, and the number of rows for training."""
    common = sorted(set(parts[0].ids).intersection(*(part.ids for part in parts[1:])))
    train, test = split_aligned(len(common), run.settings.held_out, run.settings.row_order_seed)
    places: list[Mapping[str, int]] = [{name: row for row, name in enumerate(part.ids)} for part in parts]
    ordered = [common[row] for row in train + test]
    return [
        part.take([place[name] for name in ordered]).standardised(len(train))
        for part, place in zip(parts, places, strict=True)
    ], len(train)


def train_joined(run: LocalRun, aligned: list[Columns], count: int) -> VerticalModel:
    """Train the same model with the same first weights and batches by plain torch on the joined columns."""
    first, second = (load_columns_model(run.model, seed) for seed in (run.seed, run.seed + SERVER_SEED))
    model = load_vertical(run.model)
    model.fronts.load_state_dict(first.fronts.state_dict())
    model.tail.load_state_dict(second.tail.state_dict())
    labels = aligned[0].labels
    assert labels is not None
    settings = run.settings
    loader = Loader(
        aligned[0].values[:count], labels[:count], batch_size=settings.batch_size, seed=settings.row_order_seed
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    model.train()
    with one_thread():
        for index in range(run.epochs * loader.per_epoch):
            rows = loader.rows(index)
            optimizer.zero_grad()
            functional.cross_entropy(model(*(columns.values[rows] for columns in aligned)), labels[rows]).backward()
            optimizer.step()
    return model
