"""`splitsec audit`: what a server learns at a cut in plain training, and what it learns from encrypted predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from splitsec.apps.audit_plan import Section, best_threads, paces_of, sections_of, stages_of
from splitsec.apps.audit_rows import AuditRun, load_rows
from splitsec.apps.stages import Course, Report, Stage, ignore
from splitsec.cut import INPUT, SplitModel, check_batch
from splitsec.data.loaders import Loader
from splitsec.errors import ConfigError
from splitsec.machine import one_thread
from splitsec.models.load import load_model, load_weights
from splitsec.privacy.activation_guard import distance_correlation
from splitsec.privacy.audit.base import ATTACKS, EXAMPLES, MARGIN, Effort, Rows, Target
from splitsec.privacy.audit.page import Chapter, Row, Strip
from splitsec.training.plain import train_alone

# Of independent rows distance correlation is the farther from 0 the fewer they are.
CORRELATED_ROWS = 1000


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
        report: told where the audit is.
        on_estimate: told before the attacks how many seconds they will take, and those of a thorough audit.

    Raises:
        ConfigError, CutError: settings that cannot work.
    """
    _check(run)
    rows = load_rows(run)
    torch.manual_seed(run.seed)
    model = load_model(run.model)
    trained = _prepare(run, model, rows, Course([Stage("training on the private half", run.epochs)], report))
    targets = [
        Target(
            model,
            _split(model, cut, run.head, rows.private),
            rows,
            trained=trained,
            most_victims=run.victims,
            seed=run.seed,
            clip=run.activation_clip,
            noise=run.activation_noise,
        )
        for cut in run.cuts
    ]
    for target in targets:
        with torch.no_grad():
            check_batch(target.split.front(rows.private[:2]), rows.private[:2], target.split.cut)
    sections = sections_of(run, targets)
    effort: Effort = "thorough" if run.thorough else "quick"
    with best_threads(targets[0]):
        paces = paces_of(sections)
        course = Course(stages_of(sections, effort, paces), report)
        on_estimate(course.seconds, Course(stages_of(sections, "thorough", paces), report).seconds)
        chapters = tuple(
            _attack(replace(section, target=replace(section.target, effort=effort)), course) for section in sections
        )
    return AuditResult(run.model, len(rows.private), len(rows.public), chapters)


def _check(run: AuditRun) -> None:
    for name in run.attacks or ():
        ATTACKS.get(name)
    if (run.dataset is None) == (run.input is None):
        raise ConfigError("say what data to audit with: --dataset digits, or --input FILE.npz with images")
    if run.activation_noise and not run.activation_clip:
        raise ConfigError("noise on activations is a multiple of their clip: set it too (--activation-clip)")


def _prepare(run: AuditRun, model: nn.Module, rows: Rows, course: Course) -> bool:
    """Give the model weights; return whether the private rows, and no others, were trained on."""
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


def _attack(section: Section, course: Course) -> Chapter:
    """Make the attacks of one chapter."""
    title, rows, note = _opening(section)
    strips: list[Strip] = []
    if section.scope != "model":
        victims, guess = section.target.victims[:EXAMPLES], section.target.guess[:EXAMPLES]
        strips = [Strip("private images", victims), Strip("a guess: the mean image", guess)]
    for attack in section.attacks:
        finding = attack.run(section.target, section.progress(course))
        rows += finding.rows
        strips += finding.strips
        note = f"{note} {finding.note}".strip()
    return Chapter(title, tuple(rows), tuple(strips), note)


def _opening(section: Section) -> tuple[str, list[Row], str]:
    """Return a chapter's title, its rows before those of attacks, and the beginning of its note."""
    target = section.target
    if section.scope == "model":
        return "The released model", [], ""
    if section.scope == "prediction":
        return f"Encrypted prediction, cut at '{target.split.cut}'", [], ""
    images = target.rows.private[:CORRELATED_ROWS]
    crossing = target.sent(images)
    correlation = float(distance_correlation(images, crossing))
    by_chance = float(distance_correlation(images, crossing.roll(1, 0)))
    row = Row("none", "distance correlation", correlation, by_chance, correlation > by_chance + MARGIN)
    shape = "x".join(map(str, crossing.shape[1:]))
    labels = "" if target.split.head is not None else " With one cut the labels go to the server in plain."
    note = f"{len(target.rows.public)} images of the attacker's own, {len(target.victims)} attacked.{labels}"
    return f"Cut at '{target.split.cut}', activations of shape {shape}", [row], note
