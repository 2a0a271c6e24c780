from pathlib import Path

import pytest

from splitsec.data.datasets import load_dataset
from splitsec.errors import ConfigError


def test_a_directory_without_mnist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no MNIST in {tmp_path}"):
        load_dataset("mnist", tmp_path, 0)


def test_mnist_in_torchvisions_layout(shared_data: Path) -> None:
    whole = load_dataset("mnist", shared_data, 0)
    assert whole.train_images.shape == (60_000, 1, 28, 28)
    assert whole.test_labels.shape == (10_000,)
    assert abs(whole.train_images.mean().item()) < 0.01
