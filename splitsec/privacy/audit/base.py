"""What an attack of the audit is: what it is given, what it gives, and a name in the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import nn

from splitsec.cut import SplitModel
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.privacy.activation_guard import clip_rows, guarded
from splitsec.privacy.audit.metrics import mse, ssim
from splitsec.privacy.audit.page import Row, Strip
from splitsec.registry import Registry

Effort: TypeAlias = Literal["trial", "quick", "thorough"]
Scope: TypeAlias = Literal["model", "cut", "prediction"]
# Example images of a strip.
EXAMPLES = 12
# Clearly better than a guess: by a twentieth of it, and for areas under a curve by 0.05.
MARGIN = 0.05


@dataclass(frozen=True)
class Steps:
    """How many steps an attack takes; in a trial only as many as tell its pace."""

    quick: int
    thorough: int
    trial: int = 4

    def at(self, effort: Effort) -> int:
        """Return the number of steps at an effort."""
        return {"trial": self.trial, "quick": self.quick, "thorough": self.thorough}[effort]


@dataclass(frozen=True)
class Rows:
    """Rows of the clients, and rows that the attacker has of its own: images (N, channels, height, width), labels."""

    private: torch.Tensor = field(repr=False)
    private_labels: torch.Tensor | None = field(repr=False)
    public: torch.Tensor = field(repr=False)
    public_labels: torch.Tensor | None = field(repr=False)


@dataclass(frozen=True)
class Target:
    """What an attack is aimed at.

    Attributes:
        model: the released model, in eval mode.
        split: the same model at the cut; for attacks on the model, at the audit's first cut.
        rows: private and public images, and their labels where there are any.
        trained: whether the model was trained on the private rows and no others.
        most_victims: how many private images are attacked, if there are as many.
        seed: of everything that an attack draws.
        effort: how long the attack goes on.
        clip, noise: what the client does to its activations, as in `Privacy`.
    """

    model: nn.Module
    split: SplitModel
    rows: Rows
    trained: bool
    most_victims: int
    seed: int
    effort: Effort = "quick"
    clip: float = 0.0
    noise: float = 0.0

    @property
    def victims(self) -> torch.Tensor:
        """Return the private images that are attacked."""
        return self.rows.private[: self.most_victims]

    @property
    def guess(self) -> torch.Tensor:
        """Return what an attacker that has seen nothing says of the victims: the mean of its own images."""
        return self.rows.public.mean(0, keepdim=True).expand_as(self.victims)

    def sent(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the server is sent of images in training."""
        with torch.no_grad():
            activation = torch.cat([self.split.front(part) for part in images.split(256)])
        if not self.clip:
            return activation
        return guarded(activation, clip=self.clip, noise=self.noise, stream=Stream(fresh_seed()))

    def front(self, images: torch.Tensor) -> torch.Tensor:
        """Return the activations of images as the attacker can compute them, with the client's clip; differentiable."""
        activation: torch.Tensor = self.split.front(images)
        return clip_rows(activation, self.clip) if self.clip else activation

    def for_trial(self) -> Target:
        """Return the same with so few rows and steps that an attack on it tells its pace."""
        rows = self.rows
        private_labels = None if rows.private_labels is None else rows.private_labels[:64]
        public_labels = None if rows.public_labels is None else rows.public_labels[:128]
        few = Rows(rows.private[:64], private_labels, rows.public[:128], public_labels)
        return replace(self, rows=few, most_victims=32, effort="trial")


@dataclass(frozen=True)
class Finding:
    """What an attack achieved: rows of the audit's table, example images, and a note below them."""

    rows: tuple[Row, ...]
    strips: tuple[Strip, ...] = ()
    note: str = ""


class Progress(Protocol):
    """Where an attack says how far it has come."""

    def begin(self, title: str) -> None:
        """Note that a stage begins, one of the attack's `stages`."""

    def step(self) -> None:
        """Note that a step of the stage is over."""


class Attack(ABC):
    """An attack; one instance is registered.

    Attributes:
        scope: what it attacks, and in which chapter of the page it stands: the released model, a cut in plain training,
            or encrypted predictions at a cut.
        position: where it stands in its chapter; attacks of other packages come last.
    """

    scope: ClassVar[Scope] = "cut"
    position: ClassVar[int] = 100

    def needs(self, target: Target) -> str:
        """Return what the attack needs and the target does not have; empty if it has all."""
        return ""

    def stages(self, target: Target) -> Mapping[str, int]:
        """Return the stages of the attack and the number of steps of each, in order; for estimates of the time."""
        return {}

    @abstractmethod
    def run(self, target: Target, progress: Progress) -> Finding:
        """Attack; begin each stage at `progress`, and call its `step` after each step."""

    def try_out(self, target: Target, progress: Progress) -> None:
        """Take a few steps of each stage, which are timed.

        Args:
            target: with few rows, and the effort of a trial.
        """
        self.run(target, progress)


def compare_images(attack: str, images: torch.Tensor, guessed: torch.Tensor, mean_image: torch.Tensor) -> Finding:
    """Return how near an attack's images are to the private ones, beside the mean image, and a strip of them."""
    error, usual = mse(images, guessed), mse(images, mean_image)
    likeness, unlikeness = ssim(images, guessed), ssim(images, mean_image)
    rows = (
        Row(attack, "mean squared error of images", error, usual, error < usual * (1 - MARGIN)),
        Row(attack, "structural similarity (SSIM)", likeness, unlikeness, likeness > unlikeness + MARGIN),
    )
    return Finding(rows, (Strip(attack, guessed[:EXAMPLES]),))


ATTACKS: Registry[Attack] = Registry("attack", package="splitsec.privacy.audit")
