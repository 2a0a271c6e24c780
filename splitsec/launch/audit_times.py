"""How long an audit will take: its stages, the pace of each from a trial, and how many threads are worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import fx, nn

from splitsec.cut import SplitModel
from splitsec.launch.audit_run import Ask, AuditRun, Effort, Rows, clipped, sent_of
from splitsec.launch.stages import Stage, Step, pace_of
from splitsec.privacy.audit.encrypted import server_view
from splitsec.privacy.audit.hijacking import hijack
from splitsec.privacy.audit.inversion import invert, optimise
from splitsec.threads import one_thread

# Steps of a trial, from which the time of an attack is told.
TRIAL = 4
Views: TypeAlias = list[torch.Tensor]


def stages_of(
    run: AuditRun, effort: Effort, cuts: Sequence[SplitModel], rows: Rows, paces: Mapping[str, float]
) -> list[Stage]:
    """What the audit will do, in order."""
    found = []
    for split in cuts:
        steps = {
            "inverse": (f"inverse network at '{split.cut}'", effort.inverse),
            "optimise": (f"optimisation at '{split.cut}'", effort.optimise),
            "hijack": (f"feature-space hijacking at '{split.cut}'", effort.hijack),
        }
        found += [steps[name] for name in steps if name in run.attacks]
    for split in cuts if "encrypted" in run.attacks and run.head is None else ():
        count = min(effort.encrypted_rows, len(rows.public)) + min(run.victims, 128, len(rows.private))
        found.append((f"encrypted predictions at '{split.cut}'", count))
        found.append((f"inverse network on encrypted predictions at '{split.cut}'", effort.encrypted))
    return [Stage(title, count, paces[title]) for title, count in found]


def paces_of(run: AuditRun, cuts: Sequence[SplitModel], rows: Rows) -> dict[str, float]:
    """Seconds of a step of each stage, from a trial of a few."""
    paces: dict[str, float] = {}
    images = rows.public[:128]
    low, high = float(images.min()), float(images.max())
    for split in cuts:
        front, cut = split.front, split.cut
        seen = sent_of(run, front, images)
        asked = clipped(run, front)

        def inverted(step: Step, what: torch.Tensor = seen) -> object:
            count = min(len(what), len(images))
            return invert(what[:count], images[:count], steps=TRIAL, seed=run.seed, on_step=step)

        def optimised(step: Step, what: torch.Tensor = seen, ask: Ask = asked) -> object:
            return optimise(ask, what[:32], images[:32], low=low, high=high, steps=TRIAL, on_step=step)

        def hijacked(step: Step, begin: nn.Module = front) -> object:
            return hijack(begin, rows.private[:64], images, steps=TRIAL, seed=run.seed, on_step=step)

        attempts: dict[str, Callable[[Step], object]] = {
            "inverse network": inverted,
            "optimisation": optimised,
            "feature-space hijacking": hijacked,
        }
        wanted = ("inverse", "optimise", "hijack")
        for (title, attempt), name in zip(attempts.items(), wanted, strict=True):
            if name in run.attacks:
                paces[f"{title} at '{cut}'"] = pace_of(attempt)
        if "encrypted" in run.attacks and run.head is None:
            views: list[torch.Tensor] = []

            def predicted(
                step: Step, tail: fx.GraphModule = split.tail, what: torch.Tensor = seen, keep: Views = views
            ) -> object:
                keep.append(server_view(tail, what[:TRIAL], on_step=step))
                return keep

            paces[f"encrypted predictions at '{cut}'"] = pace_of(predicted)
            view = views[0].repeat(16, 1)
            paces[f"inverse network on encrypted predictions at '{cut}'"] = pace_of(partial(inverted, what=view))
    return paces


@contextmanager
def best_threads(split: SplitModel, rows: Rows) -> Iterator[None]:
    """One thread of torch where more are no faster: on small networks they wait for each other, many times as long."""
    images = rows.public[:128]
    with torch.no_grad():
        seen = split.front(images)

    def attempt(step: Step) -> object:
        return invert(seen, images, steps=TRIAL, on_step=step)

    with one_thread():
        alone = pace_of(attempt)
    if torch.get_num_threads() > 1 and pace_of(attempt) < 0.8 * alone:
        yield
        return
    with one_thread():
        yield
