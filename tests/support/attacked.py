"""A model that is attacked at a cut."""

from __future__ import annotations

from typing import Any

import torch

from splitsec import SplitModel
from splitsec.models.demo import digits_cnn
from splitsec.privacy.audit import Rows, Target


class Steps:
    """Counts the steps of each stage that an attack begins."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}
        self._title = ""

    def begin(self, title: str) -> None:
        self._title = title
        self.taken[title] = 0

    def step(self) -> None:
        self.taken[self._title] += 1


def split_at(cut: str | tuple[str, str]) -> SplitModel:
    """Return the demo's model at a cut, in eval mode, with the weights of a fixed seed."""
    torch.manual_seed(0)
    return SplitModel(digits_cnn(), cut).eval()


def target_at(
    cut: str | tuple[str, str], images: torch.Tensor, labels: torch.Tensor | None = None, **changed: Any
) -> Target:
    """Return the demo's model as a target, the first half of the images private."""
    split, half = split_at(cut), len(images) // 2
    of_rows = (None, None) if labels is None else (labels[:half], labels[half:])
    rows = Rows(images[:half], of_rows[0], images[half:], of_rows[1])
    settings: dict[str, Any] = {"trained": False, "most_victims": 8, "seed": 0, "effort": "trial"}
    return Target(digits_cnn().eval(), split, rows, **{**settings, **changed})
