"""Scikit-learn's digits: 1,797 images of 8x8, of which 360 are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from splitsec.data.datasets.base import DATASETS, Dataset, DemoSettings
from splitsec.data.rows import Part


def load(_data_dir: Path | None, seed: int) -> Part:
    """Load images float32 (N, 1, 8, 8) from 0 to 1; the seed decides which are held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype(np.float32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, digits.target.astype(np.int64), test_size=360, random_state=seed, stratify=digits.target
    )
    return Part(*(torch.from_numpy(array) for array in (train_images, train_labels, test_images, test_labels)))


_MODEL = "splitsec.models:digits_cnn"
DATASETS.register("digits")(
    Dataset(
        load,
        {
            "horizontal": DemoSettings(_MODEL, 16, "pool", private_batch_size=128, private_learning_rate=8e-3),
            "u": DemoSettings(_MODEL, 16, "pool,fc2", private_batch_size=128, private_learning_rate=8e-3),
            "model_parts": DemoSettings("splitsec.models:digits_half", 16),
        },
    )
)
