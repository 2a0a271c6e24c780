"""Differential privacy by record, split against Opacus on the uncut model: the same rows, noise, rate and steps."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.command import console, decimals, run_command, words
from benchmarks.records import write_result
from splitsec.apps.evaluate import share
from splitsec.cli.common import check_writable
from splitsec.data.rows import Part
from splitsec.errors import ConfigError
from splitsec.local.run import LocalRun, check_run, make_data
from splitsec.local.simulation import SERVER_SEED, SimulationSettings, simulate
from splitsec.machine import one_thread
from splitsec.models.load import load_model
from splitsec.parties.run import make_segments
from splitsec.privacy.ledger import Ledger
from splitsec.settings.privacy import Privacy
from splitsec.settings.setting import Bounds, setting
from splitsec.training.step import make_optimizer

CUT = "pool"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command."""

    dataset: Annotated[str, setting("Datasets, with commas between them: digits, mnist.")] = "digits"
    data_dir: Annotated[Path, setting("For mnist: the directory above MNIST/raw.")] | None = None
    epsilon: Annotated[str, setting("Budgets.")] = "1,3,8"
    delta: Annotated[float, setting("The budgets' delta.", Bounds(above=0, below=1))] = 1e-5
    clients: Annotated[int, setting("Number of clients.", Bounds(least=2))] = 3
    epochs: Annotated[int, setting("Epochs of training.", Bounds(least=1))] = 30
    seeds: Annotated[int, setting("Runs of each, in turn.", Bounds(least=1))] = 5
    json: Annotated[Path, setting("Also write the result to this file.")] | None = None


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


def measure_private_training(run: LocalRun, *, seeds: int = 3) -> PrivateTraining:
    """Train both ways with the demo's settings for private training, in turn for each seed.

    Args:
        run: the split training, with a privacy budget.
        seeds: how many; each is trained with.
    """
    runs = [replace(run, seed=seed) for seed in range(seeds)]
    split, opacus, ledger, epsilon = [], [], None, 0.0
    for seeded in runs:
        parts = [one for one in make_data(seeded) if isinstance(one, Part)]
        accuracy, ledger = _split(seeded, parts)
        split.append(accuracy)
        accuracy, epsilon = _opacus(seeded, parts, ledger)
        opacus.append(accuracy)
    if ledger is None:
        raise ConfigError("measure at least one seed")
    entry = ledger.entries[0]
    return PrivateTraining(
        dataset=run.data,
        clients=len(run.names),
        cut=run.where,
        budget=run.privacy.epsilon or 0.0,
        delta=run.privacy.delta,
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
        settings=run.settings,
        how=SimulationSettings(seed=run.seed, repeatable=True),
    )
    whole = nn.Sequential(found.segments[run.names[0]][0], tail)
    return _accuracy(whole, parts), found.ledgers[run.names[0]]


def _opacus(run: LocalRun, parts: Sequence[Part], ledger: Ledger) -> tuple[float, float]:
    """Opacus as its documentation has it, on the uncut model and all clients' rows together."""
    from opacus import PrivacyEngine

    entry, settings = ledger.entries[0], run.settings
    torch.manual_seed(run.seed)
    model = load_model(run.model)
    optimizer = make_optimizer(list(model.parameters()), settings.learning_rate)
    assert optimizer is not None
    images = torch.cat([part.train_images for part in parts])
    labels = torch.cat([part.train_labels for part in parts])
    rows = TensorDataset(images, labels)
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")
        engine = PrivacyEngine(accountant=settings.privacy.accountant)
        private, stepper, loader = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(rows, batch_size=math.ceil(len(rows) * entry.rate)),
            noise_multiplier=entry.noise,
            max_grad_norm=settings.privacy.clip,
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
        epsilon = engine.get_epsilon(settings.privacy.delta)
    return _accuracy(private, parts), float(epsilon)


def _accuracy(model: nn.Module, parts: Sequence[Part]) -> float:
    images = torch.cat([part.test_images for part in parts])
    labels = torch.cat([part.test_labels for part in parts])
    with torch.no_grad():
        return share(model.eval()(images).argmax(1) == labels)


def main(options: Options, arguments: Sequence[str]) -> None:
    """Measure every budget, and print one table."""
    check_writable(options.json)
    budgets = decimals(options.epsilon, "--epsilon")
    names = words(options.dataset)
    for name in names:
        check_run(LocalRun(dataset=name))
    out = console()
    records = []
    with out.status("") as status:
        for dataset in names:
            for budget in budgets:
                status.update(f"{dataset}, epsilon {budget:g}")
                run = LocalRun(
                    epochs=options.epochs,
                    clients=options.clients,
                    dataset=dataset,
                    data_dir=options.data_dir,
                    cut=CUT,
                    privacy=Privacy(epsilon=budget, delta=options.delta),
                )
                records.append(measure_private_training(run, seeds=options.seeds))
                write_result(options.json, records, benchmark="private_training", arguments=arguments)
    out.print(_table(records, options))


def _table(records: Sequence[PrivateTraining], options: Options) -> Table:
    table = Table(title=f"differential privacy by record at delta {options.delta:g}, {options.clients} clients")
    for heading in ("dataset", "budget", "noise", "rate", "steps", "epsilon", "Opacus's", "split", "Opacus", "seeds"):
        table.add_column(heading, justify="left" if heading == "dataset" else "right")
    for record in records:
        table.add_row(
            record.dataset,
            f"{record.budget:g}",
            f"{record.noise:.3f}",
            f"{record.rate:.4f}",
            str(record.steps),
            f"{record.epsilon_split:.6f}",
            f"{record.epsilon_opacus:.6f}",
            f"{record.accuracy_split:.2%}",
            f"{record.accuracy_opacus:.2%}",
            str(record.seeds),
        )
    return table


if __name__ == "__main__":
    run_command(
        main,
        Options,
        name="private_training",
        description="Accuracy at a privacy budget, split against Opacus on the uncut model.",
    )
