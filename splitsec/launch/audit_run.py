"""What an audit is asked for, its rows, and what the server is sent of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.launch.prediction import Samples
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.privacy.activations import clip_rows, guarded
from splitsec.training.data import load_dataset

Ask: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
ATTACKS = ("inverse", "optimise", "hijack", "labels", "members", "encrypted")


@dataclass(frozen=True)
class Effort:
    """How long attacks go on: steps of the inverse network, of optimisation and of hijacking; rows and steps of the
    inverse network on encrypted predictions."""

    inverse: int
    optimise: int
    hijack: int
    encrypted_rows: int
    encrypted: int


QUICK = Effort(inverse=400, optimise=200, hijack=400, encrypted_rows=200, encrypted=300)
THOROUGH = Effort(inverse=1500, optimise=400, hijack=1500, encrypted_rows=400, encrypted=600)


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
        thorough: attacks as long as those of the figures in `docs/privacy.md`; else `QUICK` ones.
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
    thorough: bool = False

    @property
    def effort(self) -> Effort:
        """How long each attack goes on."""
        return THOROUGH if self.thorough else QUICK


@dataclass(frozen=True)
class Rows:
    """Rows of the clients, and rows that the attacker has of its own."""

    private: torch.Tensor
    private_labels: torch.Tensor | None
    public: torch.Tensor
    public_labels: torch.Tensor | None


def load_rows(run: AuditRun) -> Rows:
    """The rows to audit with, half of them the attacker's; raises `ConfigError` where there are none to attack."""
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
    return Rows(
        images[mine],
        None if labels is None else labels[mine],
        images[theirs],
        None if labels is None else labels[theirs],
    )


def sent_of(run: AuditRun, front: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the server is sent of images in training."""
    with torch.no_grad():
        activation = torch.cat([front(part) for part in images.split(256)])
    if not run.activation_clip:
        return activation
    stream = Stream(fresh_seed())
    return guarded(activation, clip=run.activation_clip, noise=run.activation_noise, stream=stream)


def clipped(run: AuditRun, front: nn.Module) -> Ask:
    """The front with the clip that the client puts on what it sends."""
    limit = run.activation_clip
    return (lambda images: clip_rows(front(images), limit)) if limit else front
