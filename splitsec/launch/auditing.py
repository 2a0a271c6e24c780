"""`splitsec audit`: what a server learns at a cut in plain training, and what it learns from encrypted predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx, nn

from splitsec.cut import INPUT, SplitModel, check_batch
from splitsec.errors import ConfigError
from splitsec.launch.judging import share
from splitsec.launch.prediction import Samples
from splitsec.models import load_model, load_weights
from splitsec.mpc.compiler import compile_tail, encode_weights
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.pair import run_pair
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.run import run_program
from splitsec.privacy.activations import clip_rows, distance_correlation, guarded
from splitsec.privacy.audit.hijacking import hijack
from splitsec.privacy.audit.inversion import invert, optimise
from splitsec.privacy.audit.labels import gradients_at, infer_labels
from splitsec.privacy.audit.membership import infer_members
from splitsec.privacy.audit.metrics import mse, ssim
from splitsec.privacy.audit.page import Chapter, Row, Strip
from splitsec.training.data import Loader, load_dataset
from splitsec.training.loop import train_alone

ATTACKS = ("inverse", "optimise", "hijack", "labels", "members", "encrypted")
EXAMPLES = 12
# Clearly better than a guess: by a twentieth of it, and for areas under a curve by 0.05.
MARGIN = 0.05


@dataclass(frozen=True)
class AuditRun:
    """What is audited.

    Attributes:
        cuts: each by itself.
        head: of a U, the second cut: labels then stay with the client, and are attacked.
        dataset: `digits` or `mnist`; or `input`, an npz file with images and perhaps labels.
        epochs: of training on the private half before the audit, where there are labels and no weights.
        victims: private images that are attacked.
        attacks: some of `ATTACKS`.
        activation_clip, activation_noise: what the client does to its activations, as in `Privacy`.
    """

    model: str
    cuts: tuple[str, ...]
    head: str | None = None
    dataset: str | None = None
    data_dir: Path | None = None
    input: Path | None = None
    weights: Path | None = None
    epochs: int = 10
    victims: int = 128
    attacks: tuple[str, ...] = ATTACKS
    activation_clip: float = 0.0
    activation_noise: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class AuditResult:
    """Figures and example images, chapter by chapter: the model, then each cut, then encrypted prediction."""

    model: str
    rows_private: int
    rows_attacker: int
    chapters: tuple[Chapter, ...] = field(repr=False)


@dataclass(frozen=True)
class _Rows:
    """Rows of the clients, and rows that the attacker has of its own."""

    private: torch.Tensor
    private_labels: torch.Tensor | None
    public: torch.Tensor
    public_labels: torch.Tensor | None


def audit(run: AuditRun, report: Callable[[str], None] = lambda _line: None) -> AuditResult:
    """Attack each cut.

    Raises:
        ConfigError, CutError: settings that cannot work.
    """
    unknown = [one for one in run.attacks if one not in ATTACKS]
    if unknown:
        raise ConfigError(f"no attack '{unknown[0]}'; choose of: {', '.join(ATTACKS)}")
    if (run.dataset is None) == (run.input is None):
        raise ConfigError("say what data to audit with: --dataset digits, or --input FILE.npz with images")
    if run.activation_noise and not run.activation_clip:
        raise ConfigError("noise on activations is a multiple of their clip: set it too (--activation-clip)")
    rows = _rows(run)
    torch.manual_seed(run.seed)
    model = load_model(run.model)
    trained = _prepare(run, model, rows, report)
    cuts = [_split(model, cut, run.head, rows.private) for cut in run.cuts]
    for split in cuts:
        with torch.no_grad():
            check_batch(split.front.eval()(rows.private[:2]), rows.private[:2], split.cut)
    chapters = []
    if "members" in run.attacks and trained and rows.private_labels is not None:
        report("membership")
        chapters.append(_members(model, rows))
    for split in cuts:
        chapters.append(_at_cut(run, split, rows, report))
    if "encrypted" in run.attacks:
        chapters += [_encrypted(run, split, rows, report) for split in cuts if run.head is None]
    return AuditResult(run.model, len(rows.private), len(rows.public), tuple(chapters))


def _rows(run: AuditRun) -> _Rows:
    if run.dataset is not None:
        part = load_dataset(run.dataset, run.data_dir, run.seed)
        images, labels = part.train_images, part.train_labels
    else:
        assert run.input is not None
        samples = Samples.load(run.input)
        images, labels = samples.images.float(), samples.labels  # type: ignore[assignment]
    if images.dim() != 4:
        raise ConfigError(f"the images have shape {tuple(images.shape)}; attacks on images need (N, channels, H, W)")
    if len(images) < 64:
        raise ConfigError(f"{len(images)} images are too few to train an attack on; give at least 64, better 1,000")
    # Enough for attacks that train for a few minutes at most.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(run.seed))[:12_000]
    half = len(order) // 2
    mine, theirs = order[:half], order[half:]
    return _Rows(
        images[mine],
        None if labels is None else labels[mine],
        images[theirs],
        None if labels is None else labels[theirs],
    )


def _prepare(run: AuditRun, model: nn.Module, rows: _Rows, report: Callable[[str], None]) -> bool:
    """Give the model weights; returns whether the private rows, and no others, were trained on."""
    if run.weights is not None:
        load_weights(model, run.weights)
    if run.weights is not None or rows.private_labels is None or not run.epochs:
        model.eval()
        return False
    loader = Loader(rows.private, rows.private_labels, batch_size=32, seed=run.seed)
    train_alone(
        model,
        loader,
        epochs=run.epochs,
        on_epoch=lambda number: report(f"training on the private half, epoch {number} of {run.epochs}"),
    )
    return True


def _split(model: nn.Module, cut: str, head: str | None, images: torch.Tensor) -> SplitModel:
    if cut == INPUT:
        raise ConfigError("a cut at the input sends inputs in plain; there is nothing to attack")
    split = SplitModel(model, cut if head is None else (cut, head), sample=images)
    return split.eval()


def _members(model: nn.Module, rows: _Rows) -> Chapter:
    assert rows.private_labels is not None
    assert rows.public_labels is not None
    area, found = infer_members(model, (rows.private, rows.private_labels), (rows.public, rows.public_labels))
    with torch.no_grad():
        right = share(model(rows.public).argmax(1) == rows.public_labels)
    return Chapter(
        "The released model",
        (
            Row("membership by loss", "area under the ROC curve", area, 0.5, area > 0.5 + MARGIN),
            Row("membership by loss", "members found at 1 % false alarms", found, 0.01, found > 0.01 + MARGIN),
        ),
        note=f"Its accuracy on rows that it has not seen is {right:.1%}.",
    )


def _sent(run: AuditRun, front: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the server is sent of images in training."""
    with torch.no_grad():
        activation = torch.cat([front(part) for part in images.split(256)])
    if not run.activation_clip:
        return activation
    stream = Stream(fresh_seed())
    return guarded(activation, clip=run.activation_clip, noise=run.activation_noise, stream=stream)


def _image_rows(attack: str, images: torch.Tensor, made: torch.Tensor, guess: torch.Tensor) -> list[Row]:
    error, usual = mse(images, made), mse(images, guess)
    like, unlike = ssim(images, made), ssim(images, guess)
    return [
        Row(attack, "mean squared error of images", error, usual, error < usual * (1 - MARGIN)),
        Row(attack, "structural similarity (SSIM)", like, unlike, like > unlike + MARGIN),
    ]


def _at_cut(run: AuditRun, split: SplitModel, rows: _Rows, report: Callable[[str], None]) -> Chapter:
    front, cut = split.front, split.cut
    victims = rows.private[: run.victims]
    guess = rows.public.mean(0, keepdim=True).expand_as(victims)
    seen, sent = _sent(run, front, rows.public), _sent(run, front, victims)
    found: list[Row] = []
    strips = [Strip("private images", victims[:EXAMPLES]), Strip("a guess: the mean image", guess[:EXAMPLES])]
    # Of independent rows it is the farther from 0 the fewer they are.
    many = rows.private[:1000]
    crossing = _sent(run, front, many)
    near = float(distance_correlation(many, crossing))
    by_chance = float(distance_correlation(many, crossing.roll(1, 0)))
    found.append(Row("none", "distance correlation", near, by_chance, near > by_chance + MARGIN))
    if "inverse" in run.attacks:
        report(f"inverse network at '{cut}'")
        made = invert(seen, rows.public, seed=run.seed)(sent)
        found += _image_rows("inverse network", victims, made, guess)
        strips.append(Strip("inverse network", made[:EXAMPLES]))
    if "optimise" in run.attacks:
        report(f"optimisation at '{cut}'")
        few = min(32, len(victims))
        low, high = float(rows.public.min()), float(rows.public.max())
        best = optimise(_clipped(run, front), sent[:few], guess[:few], low=low, high=high)
        found += _image_rows("optimisation", victims[:few], best, guess[:few])
        strips.append(Strip("optimisation", best[:EXAMPLES]))
    if "hijack" in run.attacks:
        report(f"feature-space hijacking at '{cut}'")
        taken = hijack(front, rows.private, rows.public, seed=run.seed)[: len(victims)]
        found += _image_rows("hijacking (breaks the protocol)", victims, taken, guess)
        strips.append(Strip("hijacking", taken[:EXAMPLES]))
    if "labels" in run.attacks and run.head is not None and rows.private_labels is not None:
        report(f"labels from gradients at '{cut}'")
        found += _label_rows(split, rows, run.seed)
    where = f"Cut at '{cut}', activations of shape {'x'.join(map(str, sent.shape[1:]))}"
    labels = "" if run.head is not None else " With one cut the labels go to the server in plain."
    note = f"{len(rows.public)} images of the attacker's own, {len(victims)} attacked.{labels}"
    return Chapter(where, tuple(found), tuple(strips), note)


def _clipped(run: AuditRun, front: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    limit = run.activation_clip
    return (lambda images: clip_rows(front(images), limit)) if limit else front


def _label_rows(split: SplitModel, rows: _Rows, seed: int) -> list[Row]:
    assert rows.private_labels is not None
    assert split.head is not None
    labels = rows.private_labels[:1000]
    with torch.no_grad():
        outputs = split.tail(split.front(rows.private[:1000]))
    by_chance = infer_labels(torch.randn(len(labels), 8), labels, seed=seed)
    found = []
    for attack, seen in (
        ("labels by gradient direction", gradients_at(split.head, outputs, labels)),
        ("labels by the tail's output", outputs.flatten(1)),
    ):
        area, right, most = infer_labels(seen, labels, seed=seed)
        found += [
            Row(attack, "area under the ROC curve", area, by_chance[0], area > by_chance[0] + MARGIN),
            Row(attack, "right labels", right, most, right > most + MARGIN),
        ]
    return found


def _encrypted(run: AuditRun, split: SplitModel, rows: _Rows, report: Callable[[str], None]) -> Chapter:
    """The inverse network again, given everything that the server received in encrypted predictions."""
    report(f"encrypted predictions at '{split.cut}'")
    count = min(400, len(rows.public))
    victims = rows.private[: min(run.victims, 128)]
    seen = server_view(split.tail, _sent(run, split.front, torch.cat([rows.public[:count], victims])))
    report(f"inverse network on encrypted predictions at '{split.cut}'")
    guess = rows.public.mean(0, keepdim=True).expand_as(victims)
    made = invert(seen[:count], rows.public[:count], steps=600, seed=run.seed)(seen[count:])
    return Chapter(
        f"Encrypted prediction, cut at '{split.cut}'",
        tuple(_image_rows("inverse network on all that was received", victims, made, guess)),
        (
            Strip("private images", victims[:EXAMPLES]),
            Strip("a guess: the mean image", guess[:EXAMPLES]),
            Strip("inverse network", made[:EXAMPLES]),
        ),
        f"The server received {seen.shape[1]} numbers a prediction, sums with its own messages included; the attacker "
        f"had those of {count} images that it knows.",
    )


def server_view(tail: fx.GraphModule, activations: torch.Tensor, *, most: int = 4096) -> torch.Tensor:
    """What the server receives in an encrypted prediction of each activation, as numbers from -1 to 1: float32 (N, M).

    Args:
        most: numbers of each prediction, evenly chosen among them.
    """
    program, weights = compile_tail(copy.deepcopy(tail), (1, *activations.shape[1:]), calibration=activations[:64])
    encoded = encode_weights(program, weights)

    def protocol(context: Context, query: int) -> torch.Tensor | None:
        client = context.rank == CLIENT
        return run_program(
            program,
            context,
            activation=activations[query : query + 1] if client else None,
            weights=None if client else encoded,
        )

    held = {layer: one.weight for layer, one in encoded.items()}
    found = run_pair(protocol, queries=len(activations), weights=held)
    return numbers_of(found.seen, most)


def numbers_of(seen: Sequence[torch.Tensor], most: int) -> torch.Tensor:
    """Ring elements as numbers that a network can learn from: the top bits of each."""
    words = torch.stack(list(seen))
    if words.shape[1] > most:
        words = words[:, torch.linspace(0, words.shape[1] - 1, most).long()]
    return (words.double() / 2.0**63).float()
