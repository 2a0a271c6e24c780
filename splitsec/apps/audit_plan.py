"""What an audit will do, in order, and how long that will take, from a trial of each attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from splitsec.apps.audit_rows import AuditRun
from splitsec.apps.stages import Stage, Step, Trial, pace_of
from splitsec.errors import ConfigError
from splitsec.machine import one_thread
from splitsec.privacy.audit.base import ATTACKS, Attack, Effort, Progress, Scope, Target
from splitsec.privacy.audit.inverse_network import STEPS, invert

TRIAL_ROWS = 128


@dataclass(frozen=True)
class Section:
    """The attacks of one chapter: those of a scope on one target."""

    scope: Scope
    target: Target
    attacks: tuple[Attack, ...]

    def title_of(self, stage: str) -> str:
        """Return the title of an attack's stage among those of all targets."""
        return stage if self.scope == "model" else f"{stage} at '{self.target.split.cut}'"

    def stages(self, effort: Effort) -> Iterator[tuple[str, int]]:
        """Yield title and number of steps of each stage at an effort, in order."""
        target = replace(self.target, effort=effort)
        for attack in self.attacks:
            for stage, steps in attack.stages(target).items():
                yield self.title_of(stage), steps

    def progress(self, progress: Progress) -> Progress:
        """Return where the section's attacks report to, which knows their stages by the section's titles."""
        return _Titled(self, progress)


@dataclass(frozen=True)
class _Titled:
    section: Section
    progress: Progress

    def begin(self, title: str) -> None:
        self.progress.begin(self.section.title_of(title))

    def step(self) -> None:
        self.progress.step()


def sections_of(run: AuditRun, targets: Sequence[Target]) -> list[Section]:
    """Return the sections of an audit in order: the released model, each cut, encrypted predictions at each cut.

    Args:
        targets: one a cut.

    Raises:
        ConfigError: there is no attack of a name, or one that was asked for cannot be made.
    """
    names = ATTACKS.names() if run.attacks is None else run.attacks
    attacks = {name: ATTACKS.get(name) for name in names}
    chosen = sorted(attacks, key=lambda name: attacks[name].position)
    lacking = {name: attacks[name].needs(targets[0]) for name in chosen}
    missing = next((name for name in chosen if lacking[name]), None)
    if run.attacks is not None and missing is not None:
        raise ConfigError(f"the attack '{missing}' needs {lacking[missing]}")
    usable = [attacks[name] for name in chosen if not lacking[name]]

    def section(scope: Scope, target: Target) -> Section:
        return Section(scope, target, tuple(attack for attack in usable if attack.scope == scope))

    sections = [section("model", targets[0])]
    sections += [section("cut", target) for target in targets]
    sections += [section("prediction", target) for target in targets]
    return [section for section in sections if section.attacks or section.scope == "cut"]


def stages_of(sections: Sequence[Section], effort: Effort, paces: Mapping[str, float]) -> list[Stage]:
    """Return what the audit will do at an effort, in order."""
    return [Stage(title, steps, paces[title]) for section in sections for title, steps in section.stages(effort)]


def paces_of(sections: Sequence[Section]) -> dict[str, float]:
    """Return the seconds of a step of each stage, from a trial of a few steps."""
    trial = Trial()
    for section in sections:
        target, progress = section.target.for_trial(), section.progress(trial)
        for attack in section.attacks:
            if attack.stages(target):
                attack.try_out(target, progress)
    return {title: trial.pace(title) for section in sections for title, _ in section.stages("trial")}


@contextmanager
def best_threads(target: Target) -> Iterator[None]:
    """Use one thread of torch where more are no faster: on small networks they wait for each other for most of it."""
    images = target.rows.public[:TRIAL_ROWS]
    with torch.no_grad():
        seen = target.split.front(images)

    def attempt(step: Step) -> object:
        return invert(seen, images, steps=STEPS.trial, on_step=step)

    with one_thread():
        alone = pace_of(attempt)
    if torch.get_num_threads() > 1 and pace_of(attempt) < 0.8 * alone:
        yield
        return
    with one_thread():
        yield
