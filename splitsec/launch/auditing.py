"""`splitsec audit`: what a server learns at a cut in plain training, and what it learns from encrypted predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from splitsec.cut import INPUT, SplitModel, check_batch
from splitsec.errors import ConfigError
from splitsec.launch.audit_run import ATTACKS, THOROUGH, AuditRun, Rows, clipped, load_rows, sent_of
from splitsec.launch.audit_times import best_threads, paces_of, stages_of
from splitsec.launch.judging import share
from splitsec.launch.stages import Course, Report, Stage, ignore
from splitsec.models import load_model, load_weights
from splitsec.privacy.activations import distance_correlation
from splitsec.privacy.audit.encrypted import server_view
from splitsec.privacy.audit.hijacking import hijack
from splitsec.privacy.audit.inversion import invert, optimise
from splitsec.privacy.audit.labels import gradients_at, infer_labels
from splitsec.privacy.audit.membership import infer_members
from splitsec.privacy.audit.metrics import mse, ssim
from splitsec.privacy.audit.page import Chapter, Row, Strip
from splitsec.threads import one_thread
from splitsec.training.data import Loader
from splitsec.training.loop import train_alone

EXAMPLES = 12
# Clearly better than a guess: by a twentieth of it, and for areas under a curve by 0.05.
MARGIN = 0.05


@dataclass(frozen=True)
class AuditResult:
    """Figures and example images, chapter by chapter: the model, then each cut, then encrypted prediction."""

    model: str
    rows_private: int
    rows_attacker: int
    chapters: tuple[Chapter, ...] = field(repr=False)


def audit(
    run: AuditRun,
    report: Report = ignore,
    *,
    on_estimate: Callable[[float, float], None] = lambda _now, _thorough: None,
) -> AuditResult:
    """Attack each cut.

    Args:
        report: is told where the audit is.
        on_estimate: is told before the attacks how many seconds they will take, and those of a thorough audit.

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
    rows = load_rows(run)
    torch.manual_seed(run.seed)
    model = load_model(run.model)
    trained = _prepare(run, model, rows, Course([Stage("training on the private half", run.epochs)], report))
    cuts = [_split(model, cut, run.head, rows.private) for cut in run.cuts]
    for split in cuts:
        with torch.no_grad():
            check_batch(split.front.eval()(rows.private[:2]), rows.private[:2], split.cut)
    with best_threads(cuts[0], rows):
        paces = paces_of(run, cuts, rows)
        stages = stages_of(run, run.effort, cuts, rows, paces)
        course = Course(stages, report)
        on_estimate(course.seconds, Course(stages_of(run, THOROUGH, cuts, rows, paces), report).seconds)
        chapters = []
        if "members" in run.attacks and trained and rows.private_labels is not None:
            chapters.append(_members(model, rows))
        for split in cuts:
            chapters.append(_at_cut(run, split, rows, course))
        if "encrypted" in run.attacks:
            chapters += [_encrypted(run, split, rows, course) for split in cuts if run.head is None]
    return AuditResult(run.model, len(rows.private), len(rows.public), tuple(chapters))


def _prepare(run: AuditRun, model: nn.Module, rows: Rows, course: Course) -> bool:
    """Give the model weights; returns whether the private rows, and no others, were trained on."""
    if run.weights is not None:
        load_weights(model, run.weights)
    if run.weights is not None or rows.private_labels is None or not run.epochs:
        model.eval()
        return False
    loader = Loader(rows.private, rows.private_labels, batch_size=32, seed=run.seed)
    course.begin("training on the private half")
    with one_thread():
        train_alone(model, loader, epochs=run.epochs, on_epoch=lambda number: course.step() if number > 1 else None)
    course.step()
    return True


def _split(model: nn.Module, cut: str, head: str | None, images: torch.Tensor) -> SplitModel:
    if cut == INPUT:
        raise ConfigError("a cut at the input sends inputs in plain; there is nothing to attack")
    split = SplitModel(model, cut if head is None else (cut, head), sample=images)
    return split.eval()


def _members(model: nn.Module, rows: Rows) -> Chapter:
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


def _image_rows(attack: str, images: torch.Tensor, made: torch.Tensor, guess: torch.Tensor) -> list[Row]:
    error, usual = mse(images, made), mse(images, guess)
    like, unlike = ssim(images, made), ssim(images, guess)
    return [
        Row(attack, "mean squared error of images", error, usual, error < usual * (1 - MARGIN)),
        Row(attack, "structural similarity (SSIM)", like, unlike, like > unlike + MARGIN),
    ]


def _at_cut(run: AuditRun, split: SplitModel, rows: Rows, course: Course) -> Chapter:
    front, cut = split.front, split.cut
    victims = rows.private[: run.victims]
    guess = rows.public.mean(0, keepdim=True).expand_as(victims)
    seen, sent = sent_of(run, front, rows.public), sent_of(run, front, victims)
    found: list[Row] = []
    strips = [Strip("private images", victims[:EXAMPLES]), Strip("a guess: the mean image", guess[:EXAMPLES])]
    # Of independent rows it is the farther from 0 the fewer they are.
    many = rows.private[:1000]
    crossing = sent_of(run, front, many)
    near = float(distance_correlation(many, crossing))
    by_chance = float(distance_correlation(many, crossing.roll(1, 0)))
    found.append(Row("none", "distance correlation", near, by_chance, near > by_chance + MARGIN))
    if "inverse" in run.attacks:
        course.begin(f"inverse network at '{cut}'")
        made = invert(seen, rows.public, steps=run.effort.inverse, seed=run.seed, on_step=course.step)(sent)
        found += _image_rows("inverse network", victims, made, guess)
        strips.append(Strip("inverse network", made[:EXAMPLES]))
    if "optimise" in run.attacks:
        course.begin(f"optimisation at '{cut}'")
        few = min(32, len(victims))
        low, high = float(rows.public.min()), float(rows.public.max())
        best = optimise(
            clipped(run, front),
            sent[:few],
            guess[:few],
            low=low,
            high=high,
            steps=run.effort.optimise,
            on_step=course.step,
        )
        found += _image_rows("optimisation", victims[:few], best, guess[:few])
        strips.append(Strip("optimisation", best[:EXAMPLES]))
    if "hijack" in run.attacks:
        course.begin(f"feature-space hijacking at '{cut}'")
        taken = hijack(front, rows.private, rows.public, steps=run.effort.hijack, seed=run.seed, on_step=course.step)[
            : len(victims)
        ]
        found += _image_rows("hijacking (breaks the protocol)", victims, taken, guess)
        strips.append(Strip("hijacking", taken[:EXAMPLES]))
    if "labels" in run.attacks and run.head is not None and rows.private_labels is not None:
        found += _label_rows(split, rows, run.seed)
    where = f"Cut at '{cut}', activations of shape {'x'.join(map(str, sent.shape[1:]))}"
    labels = "" if run.head is not None else " With one cut the labels go to the server in plain."
    note = f"{len(rows.public)} images of the attacker's own, {len(victims)} attacked.{labels}"
    return Chapter(where, tuple(found), tuple(strips), note)


def _label_rows(split: SplitModel, rows: Rows, seed: int) -> list[Row]:
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


def _encrypted(run: AuditRun, split: SplitModel, rows: Rows, course: Course) -> Chapter:
    """The inverse network again, given everything that the server received in encrypted predictions."""
    course.begin(f"encrypted predictions at '{split.cut}'")
    count = min(run.effort.encrypted_rows, len(rows.public))
    victims = rows.private[: min(run.victims, 128)]
    sent = sent_of(run, split.front, torch.cat([rows.public[:count], victims]))
    seen = server_view(split.tail, sent, on_step=course.step)
    course.begin(f"inverse network on encrypted predictions at '{split.cut}'")
    guess = rows.public.mean(0, keepdim=True).expand_as(victims)
    made = invert(seen[:count], rows.public[:count], steps=run.effort.encrypted, seed=run.seed, on_step=course.step)(
        seen[count:]
    )
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
