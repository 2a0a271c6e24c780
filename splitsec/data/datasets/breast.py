"""Breast cancer of 569 patients of two hospitals, each of which has not seen one patient in twenty.

Of scikit-learn's 30 measurements the first hospital has the ten means and the diagnosis, the second has the errors and
the worst values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from splitsec.data.columns import Columns
from splitsec.data.datasets.base import DATASETS, Dataset, DemoSettings


def load(_data_dir: Path | None, seed: int) -> list[Columns]:
    """Load 10 columns with labels, and 20 without; the seed decides whom a hospital has not seen, and its order."""
    from sklearn.datasets import load_breast_cancer

    patients = load_breast_cancer()
    values, labels = torch.from_numpy(patients.data).float(), torch.from_numpy(patients.target).long()
    shuffle = np.random.default_rng(seed)
    hospitals = []
    for columns, has_labels in ((slice(0, 10), True), (slice(10, 30), False)):
        rows = torch.from_numpy(shuffle.permutation(len(labels))[: len(labels) - len(labels) // 20])
        ids = tuple(f"patient-{row:04d}" for row in rows.tolist())
        hospitals.append(Columns(ids, values[rows][:, columns], labels[rows] if has_labels else None))
    return hospitals


DATASETS.register("breast")(Dataset(load, {"vertical": DemoSettings("splitsec.models:breast_columns", 32)}))
