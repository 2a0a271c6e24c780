"""What an audit is asked for, and its rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from splitsec.apps.samples import Samples
from splitsec.data.datasets import load_dataset
from splitsec.errors import ConfigError
from splitsec.privacy.audit.base import Rows

# Enough for attacks that train for a few minutes at most.
MOST_ROWS = 12_000
FEWEST_ROWS = 64


@dataclass(frozen=True)
class AuditRun:
    """What is audited.

    Attributes:
        cuts: each by itself.
        head: of a U, the second cut: labels then stay with the client, and are attacked.
        dataset: a registered one of rows, such as `digits`; or `input`, an npz file with images and perhaps labels.
        epochs: of training on the private half before the audit, where there are labels and no weights.
        victims: private images that are attacked.
        attacks: names of attacks; None for all that have what they need.
        activation_clip, activation_noise: what the client does to its activations, as in `Privacy`.
        thorough: attacks as long as those of the figures in `docs/explanation/privacy.md`; else quick ones.
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
    attacks: tuple[str, ...] | None = None
    activation_clip: float = 0.0
    activation_noise: float = 0.0
    seed: int = 0
    thorough: bool = False


def load_rows(run: AuditRun) -> Rows:
    """Load the rows to audit with, half of them the attacker's.

    Raises:
        ConfigError: they cannot be read, are too few, or are no images.
    """
    if run.dataset is not None:
        part = load_dataset(run.dataset, run.data_dir, run.seed)
        images, labels = part.train_images, part.train_labels
    else:
        assert run.input is not None
        samples = Samples.load(run.input, run.model)[0]
        images, labels = samples.images.float(), samples.labels  # type: ignore[assignment]
    if images.dim() != 4:
        raise ConfigError(f"the images have shape {tuple(images.shape)}; attacks on images need (N, channels, H, W)")
    if len(images) < FEWEST_ROWS:
        raise ConfigError(
            f"{len(images)} images are too few to train an attack on; give at least {FEWEST_ROWS}, better 1,000"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(run.seed))[:MOST_ROWS]
    private, public = order[: len(order) // 2], order[len(order) // 2 :]
    if labels is None:
        return Rows(images[private], None, images[public], None)
    return Rows(images[private], labels[private], images[public], labels[public])
