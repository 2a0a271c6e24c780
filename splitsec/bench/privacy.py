"""Differential privacy by record, split against Opacus on the uncut model: the same rows, noise, rate and steps."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from splitsec.errors import ConfigError
from splitsec.launch.judging import share
from splitsec.launch.local import LocalRun, make_data
from splitsec.launch.simulation import SERVER_SEED, simulate
from splitsec.models import load_model
from splitsec.parties.running import make_segments
from splitsec.privacy.ledger import Ledger
from splitsec.threads import one_thread
from splitsec.training.data import Part
from splitsec.training.loop import make_optimizer


@dataclass(frozen=True)
class PrivateTraining:
    """Accuracies are of all held-out rows, the median over the seeds; the epsilons are those spent at `delta`."""

    dataset: str
    clients: int
    cut: str
    budget: float
    delta: float
    noise: float
    rate: float
    steps: int
    epsilon_split: float
    epsilon_opacus: float
    accuracy_split: float
    accuracy_opacus: float
    seeds: int
    all_split: tuple[float, ...]
    all_opacus: tuple[float, ...]


def measure_private_training(
    dataset: str,
    budget: float,
    *,
    clients: int = 3,
    cut: str = "pool",
    delta: float = 1e-5,
    data_dir: Path | None = None,
    epochs: int = 30,
    seeds: int = 3,
) -> PrivateTraining:
    """Train both ways with the demo's settings for private training, in turn for each seed."""
    runs = [
        LocalRun(
            epochs=epochs,
            clients=clients,
            dataset=dataset,
            data_dir=data_dir,
            cut=cut,
            seed=seed,
            dp_epsilon=budget,
            dp_delta=delta,
        )
        for seed in range(seeds)
    ]
    split, opacus, ledger, epsilon = [], [], None, 0.0
    for run in runs:
        parts = [one for one in make_data(run) if isinstance(one, Part)]
        accuracy, ledger = _split(run, parts)
        split.append(accuracy)
        accuracy, epsilon = _opacus(run, parts, ledger)
        opacus.append(accuracy)
    if ledger is None:
        raise ConfigError("measure at least one seed")
    entry = ledger.entries[0]
    return PrivateTraining(
        dataset=dataset,
        clients=clients,
        cut=cut,
        budget=budget,
        delta=delta,
        noise=entry.noise,
        rate=entry.rate,
        steps=entry.steps,
        epsilon_split=entry.epsilon or 0.0,
        epsilon_opacus=epsilon,
        accuracy_split=median(split),
        accuracy_opacus=median(opacus),
        seeds=seeds,
        all_split=tuple(split),
        all_opacus=tuple(opacus),
    )


def _split(run: LocalRun, parts: Sequence[Part]) -> tuple[float, Ledger]:
    cut, (tail,) = make_segments(run.model, run.where, run.seed + SERVER_SEED, ("tail",))
    _, first = make_segments(run.model, run.where, run.seed, ("front",))
    found = simulate(
        tail,
        lambda _name: copy.deepcopy(list[nn.Module](first)),
        dict(zip(run.names, parts, strict=True)),
        cut=cut,
        schedule=run.schedule,
        seed=run.seed,
        repeatable=True,
    )
    whole = nn.Sequential(found.segments[run.names[0]][0], tail)
    return _accuracy(whole, parts), found.ledgers[run.names[0]]


def _opacus(run: LocalRun, parts: Sequence[Part], ledger: Ledger) -> tuple[float, float]:
    """Opacus as its documentation has it, on the uncut model and all clients' rows together."""
    from opacus import PrivacyEngine

    entry, schedule = ledger.entries[0], run.schedule
    torch.manual_seed(run.seed)
    model = load_model(run.model)
    optimizer = make_optimizer(list(model.parameters()), schedule.learning_rate)
    assert optimizer is not None
    images = torch.cat([one.train_images for one in parts])
    labels = torch.cat([one.train_labels for one in parts])
    rows = TensorDataset(images, labels)
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")
        engine = PrivacyEngine(accountant=schedule.privacy.accountant)
        private, stepper, loader = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(rows, batch_size=math.ceil(len(rows) * entry.rate)),
            noise_multiplier=entry.noise,
            max_grad_norm=schedule.privacy.clip,
        )
        taken = 0
        while taken < entry.steps:
            for batch, wanted in loader:
                if taken == entry.steps:
                    break
                stepper.zero_grad()
                F.cross_entropy(private(batch), wanted).backward()
                stepper.step()
                taken += 1
        epsilon = engine.get_epsilon(schedule.privacy.delta)
    return _accuracy(private, parts), float(epsilon)


def _accuracy(model: nn.Module, parts: Sequence[Part]) -> float:
    images = torch.cat([one.test_images for one in parts])
    labels = torch.cat([one.test_labels for one in parts])
    with torch.no_grad():
        return share(model.eval()(images).argmax(1) == labels)
