"""What to predict, from a user's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from splitsec.apps.samples import Samples
from splitsec.errors import ConfigError, CutError

RANDOM = np.random.default_rng(0)
NUMBERS, CODES = RANDOM.normal(size=(4, 5)), RANDOM.integers(0, 3, (4, 3))


def written(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "in.npz", **arrays)
    return path / "in.npz"


def test_images_and_labels(tmp_path: Path) -> None:
    images = RANDOM.normal(size=(4, 1, 8, 8)).astype("f4")
    samples, source = Samples.load(written(tmp_path, images=images, labels=np.arange(4)), "m.py:f")
    assert samples.images.shape == (4, 1, 8, 8)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3]
    assert source == "m.py:f"


def test_inputs_by_name_give_the_source_a_signature(tmp_path: Path) -> None:
    file = written(tmp_path, numbers=NUMBERS, codes=CODES)
    samples, source = Samples.load(file, "m.py:f -> logits")
    assert source == "m.py:f(numbers: 5, codes: 3 int64) -> logits"
    assert samples.images.shape == (4, 8)
    again, same = Samples.load(file, source)
    assert same == source
    assert torch.equal(again.images, samples.images)


def test_the_order_is_that_of_the_signature(tmp_path: Path) -> None:
    samples, _ = Samples.load(
        written(tmp_path, numbers=NUMBERS, codes=CODES, more=CODES), "m.py:f(codes: 3 int64, numbers: 5)"
    )
    assert torch.equal(samples.images[:, :3], torch.from_numpy(CODES).float())


@pytest.mark.parametrize(
    ("arrays", "source", "reason"),
    [
        ({}, "m.py:f", "has no array 'images'"),
        ({"numbers": NUMBERS}, "m.py:f(codes: 3 int64)", "no array 'codes', which the model takes; it has numbers"),
        ({"numbers": NUMBERS * np.nan}, "m.py:f", "the 'numbers' .* not a finite number"),
        ({"images": NUMBERS, "labels": NUMBERS}, "m.py:f", "the labels in .* give a whole number an image"),
        ({"names": np.array(["a", "b"])}, "m.py:f", "the 'names' .* give numbers"),
    ],
)
def test_files_that_hold_something_else(
    tmp_path: Path, arrays: dict[str, np.ndarray], source: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Samples.load(written(tmp_path, **arrays), source)


def test_inputs_of_another_shape_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CutError, match=r"in\.npz: input 'numbers' has shape 4x5, expected 4x6"):
        Samples.load(written(tmp_path, numbers=NUMBERS), "m.py:f(numbers: 6)")


def test_whole_numbers_are_for_models_that_look_them_up() -> None:
    ids = Samples(torch.tensor([[1, 2]]))
    assert ids.fit(nn.Embedding(3, 2), 3).images.dtype == torch.int64
    with pytest.raises(ConfigError, match="whole numbers from 0 to 1"):
        ids.fit(nn.Embedding(2, 2), 2)
    with pytest.raises(ConfigError, match="give real numbers, scaled as the model was trained"):
        ids.fit(nn.Linear(2, 2), None)
