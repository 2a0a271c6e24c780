"""Digits, and fronts of the demo's model, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from splitsec.data.datasets import load_dataset
from splitsec.machine import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def digits() -> torch.Tensor:
    """The training images of the handwritten digits."""
    return load_dataset("digits", None, 0).train_images
