"""`splitsec pate`: teachers on this machine, votes in shares, and a student that learns from the labels that open."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from splitsec.apps.evaluate import share
from splitsec.data.datasets import load_dataset
from splitsec.data.loaders import Loader
from splitsec.data.partition import split_rows
from splitsec.data.rows import Part
from splitsec.errors import ConfigError
from splitsec.models.load import load_model
from splitsec.mpc.context import Context
from splitsec.mpc.in_process import run_pair
from splitsec.privacy.pate.accounting import Confidence, cost_of_votes
from splitsec.privacy.pate.voting import Ballot, blank, cast, confident, only, winners
from splitsec.randomness import derived_seed
from splitsec.settings.privacy import check_delta
from splitsec.training.plain import train_alone

CLASSES = 10
# The share of public rows, those between clusters, that the student leaves out.
UNSURE = 0.1


@dataclass(frozen=True)
class PateData:
    """A dataset's settings: public rows that no teacher has seen, the number of queries, and with how much noise.

    The noise is in votes; the threshold is a share of the teachers.
    """

    model: str
    teachers: int
    public: int
    queries: int
    threshold: float
    threshold_noise: float
    vote_noise: float
    teacher_epochs: int
    student_epochs: int
    batch_size: int


DATA = {
    "digits": PateData("splitsec.models:digits_cnn", 10, 337, 22, 0.1, 2.5, 1.5, 60, 60, 16),
    "mnist": PateData("splitsec.models:mnist_cnn", 50, 10_000, 800, 0.2, 12.0, 7.0, 12, 4, 32),
}


@dataclass(frozen=True)
class PateRun:
    """What `splitsec pate` does; with None, what suits the dataset.

    Attributes:
        threshold, threshold_noise, vote_noise: of Confident-GNMax, in votes.
        delta: at most 1 over the number of the teachers' records.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    teachers: int | None = None
    queries: int | None = None
    threshold: float | None = None
    threshold_noise: float | None = None
    vote_noise: float | None = None
    delta: float = 1e-5
    seed: int = 0


@dataclass(frozen=True)
class PateResult:
    """The figures.

    Attributes:
        epsilon: data-dependent, see `privacy.pate`.
        label_accuracy: of the labels that were opened.
        teacher_accuracy: mean over the teachers.
        rounds, bytes: of the encrypted votes, both parties' messages together.
    """

    dataset: str
    teachers: int
    epsilon: float
    epsilon_data_independent: float
    delta: float
    queries: int
    answered: int
    student_accuracy: float
    label_accuracy: float
    teacher_accuracy: float
    rounds: int
    bytes: int
    voting_seconds: float
    seconds: float


def run_pate(run: PateRun, report: Callable[[str], None] = lambda _line: None) -> PateResult:
    """Train the teachers, let them vote, train the student.

    Raises:
        ConfigError: settings that cannot work.
    """
    began = time.monotonic()
    if run.dataset not in DATA:
        raise ConfigError(f"no dataset '{run.dataset}'; choose of: {', '.join(DATA)}")
    data = DATA[run.dataset]
    teachers = data.teachers if run.teachers is None else run.teachers
    queries = data.queries if run.queries is None else run.queries
    scale = teachers / data.teachers
    confidence = Confidence(
        data.threshold * teachers if run.threshold is None else run.threshold,
        data.threshold_noise * scale if run.threshold_noise is None else run.threshold_noise,
        data.vote_noise * scale if run.vote_noise is None else run.vote_noise,
    )
    if not 2 <= teachers <= 1000:
        raise ConfigError(f"{teachers} teachers: choose 2 to 1000")
    if not 1 <= queries <= data.public:
        raise ConfigError(f"{queries} queries: there are {data.public} public rows")
    confidence.check(teachers)
    whole = load_dataset(run.dataset, run.data_dir, run.seed)
    private = len(whole.train_labels) - data.public
    check_delta(run.delta, private)
    shuffled = torch.from_numpy(
        np.random.default_rng(derived_seed("public rows", run.seed)).permutation(private + data.public)
    )
    public, rest = shuffled[: data.public], shuffled[data.public :]
    images, labels = whole.train_images[public], whole.train_labels[public]
    asked = _typical(images, queries, run.seed)
    report(f"training {teachers} teachers, each on {private // teachers} rows of its own")
    votes, accuracies = _teach(run, data, teachers, whole, rest, images[asked], report)
    counts = functional.one_hot(votes, CLASSES).sum(0)
    report("voting on shares")
    voting = time.monotonic()
    answered, opened, rounds, moved = _vote(votes, confidence)
    voting = time.monotonic() - voting
    spent = cost_of_votes(counts, answered.bool().tolist(), confidence, delta=run.delta, records=private)
    if not len(opened):
        raise ConfigError("no query was answered: lower the threshold or the noise")
    report("training the student")
    chosen = asked[answered.bool()]
    student = _study(data, images, chosen, opened, run.seed)
    with torch.no_grad():
        accuracy = share(student(whole.test_images).argmax(1) == whole.test_labels)
    return PateResult(
        dataset=run.dataset,
        teachers=teachers,
        epsilon=spent.epsilon,
        epsilon_data_independent=spent.epsilon_data_independent,
        delta=run.delta,
        queries=queries,
        answered=len(opened),
        student_accuracy=accuracy,
        label_accuracy=share(opened == labels[chosen]),
        teacher_accuracy=sum(accuracies) / len(accuracies),
        rounds=rounds,
        bytes=moved,
        voting_seconds=voting,
        seconds=time.monotonic() - began,
    )


def _typical(images: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Return rows in the middle of clusters of the public inputs, int64 (count,).

    Teachers agree on them, and they stand for many. No private row and no label takes part in the choice.
    """
    from sklearn.cluster import KMeans

    flat = _features(images)
    centres = KMeans(count, n_init=3, random_state=seed).fit(flat).cluster_centers_
    chosen: list[int] = []
    for centre in centres:
        order = np.argsort(((flat - centre) ** 2).sum(1))
        chosen.append(next(int(row) for row in order if int(row) not in chosen))
    return torch.tensor(chosen)


def _features(images: torch.Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    from sklearn.decomposition import PCA

    flat = images.flatten(1).double().numpy()
    return flat if flat.shape[1] <= 64 else PCA(40, random_state=0).fit_transform(flat)


def _teach(
    run: PateRun,
    data: PateData,
    teachers: int,
    whole: Part,
    rows: torch.Tensor,
    queries: torch.Tensor,
    report: Callable[[str], None],
) -> tuple[torch.Tensor, list[float]]:
    """Every teacher's labels for the queries, int64 (teachers, queries), and how good it is on held-out rows."""
    parts = split_rows("iid", whole.train_labels[rows], teachers, run.seed)
    jobs = []
    for number, part in enumerate(parts):
        chosen = rows[torch.as_tensor(part)]
        inputs = (whole.train_images[chosen].numpy(), whole.train_labels[chosen].numpy())
        held_out = (whole.test_images[:1000].numpy(), whole.test_labels[:1000].numpy())
        jobs.append((data, inputs, queries.numpy(), held_out, derived_seed(f"teacher {number}", run.seed)))
    votes, accuracies = [], []
    # Each in a process of its own kind: fork would copy locks that torch's threads hold.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for done, (labels, accuracy) in enumerate(pool.map(_one_teacher, jobs), 1):
            votes.append(torch.from_numpy(labels))
            accuracies.append(accuracy)
            report(f"{done} of {teachers} teachers are trained")
    return torch.stack(votes), accuracies


def _one_teacher(job: tuple[PateData, tuple[np.ndarray, ...], np.ndarray, tuple[np.ndarray, ...], int]) -> Any:
    data, inputs, queries, held_out, seed = job
    torch.set_num_threads(1)
    model = _train(data, torch.from_numpy(inputs[0]), torch.from_numpy(inputs[1]), data.teacher_epochs, seed)
    with torch.no_grad():
        accuracy = share(model(torch.from_numpy(held_out[0])).argmax(1) == torch.from_numpy(held_out[1]))
        return model(torch.from_numpy(queries)).argmax(1).numpy(), accuracy


def _train(
    data: PateData, images: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int, *, shift: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    model = load_model(data.model)
    loader = Loader(images, labels, batch_size=min(data.batch_size, len(images)), seed=seed)
    train_alone(model, loader, epochs=epochs, change=lambda inputs: _shifted(inputs, shift))
    return model


def _shifted(images: torch.Tensor, most: int) -> torch.Tensor:
    """Return a batch moved by up to `most` pixels."""
    if not most:
        return images
    down, right = torch.randint(0, 2 * most + 1, (2,)).tolist()
    padded = functional.pad(images, (most, most, most, most), value=float(images.min()))
    return padded[..., down : down + images.shape[-2], right : right + images.shape[-1]]


def _vote(votes: torch.Tensor, confidence: Confidence) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Cast votes as shares and let the two parties find the confident labels.

    Returns:
        Which queries were answered (int64), their labels, and the rounds and bytes of it.
    """
    teachers, queries = votes.shape
    ballots = [cast(vote, CLASSES, confidence, teachers=teachers) for vote in votes]
    sums = [blank(CLASSES, queries), blank(CLASSES, queries)]
    for pair in ballots:
        sums = [total + part for total, part in zip(sums, pair, strict=True)]

    def shares_of(context: Context, chosen: torch.Tensor) -> Ballot:
        return blank(CLASSES, len(chosen)) if context.planning else only(sums[context.rank], chosen)

    every = torch.arange(queries)
    first = run_pair(lambda context, _: confident(context, shares_of(context, every), confidence.threshold))
    answered = first.server[0]
    chosen = torch.nonzero(answered).flatten()
    costs = [first.cost]
    labels = torch.empty(0, dtype=torch.int64)
    if len(chosen):
        second = run_pair(lambda context, _: winners(context, shares_of(context, chosen)))
        labels = second.client[0]
        costs.append(second.cost)
    moved = sum(cost.bytes_sent + cost.bytes_received for cost in costs)
    return answered, labels, sum(cost.rounds for cost in costs), moved


def _study(data: PateData, images: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, seed: int) -> nn.Module:
    """Train the student: spread labels over the public rows along their nearest neighbours, then fit a network.

    D. Zhou et al., "Learning with local and global consistency", NIPS 2003, by scikit-learn.
    """
    from sklearn.semi_supervised import LabelSpreading

    known = np.full(len(images), -1)
    known[rows.numpy()] = labels.numpy()
    spread = LabelSpreading(kernel="knn", n_neighbors=7, alpha=0.2, max_iter=100).fit(_features(images), known)
    sure = torch.from_numpy(spread.label_distributions_.max(1))
    kept = sure >= torch.quantile(sure, UNSURE)
    spread_labels = torch.from_numpy(spread.transduction_).long()
    return _train(data, images[kept], spread_labels[kept], data.student_epochs, seed, shift=images.shape[-1] // 14)
