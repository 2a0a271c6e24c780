from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from splitsec.errors import ConfigError
from splitsec.training.data import Loader, Part, load_dataset


def test_a_part_survives_its_file(tmp_path: Path) -> None:
    part = load_dataset("digits", None, 0)
    part.save(tmp_path / "part.safetensors")
    back = Part.load(tmp_path / "part.safetensors")
    assert all(torch.equal(value, vars(back)[name]) for name, value in vars(part).items())


def test_batches_cover_the_part_once_an_epoch_in_a_new_order() -> None:
    inputs = torch.arange(10.0)[:, None]
    loader = Loader(inputs, torch.arange(10), batch_size=4, seed=3)
    assert loader.per_epoch == 3
    first, second = ([loader.batch(3 * epoch + step)[1] for step in range(3)] for epoch in range(2))
    assert [len(one) for one in first] == [4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    # A batch is the same whenever it is asked for, and its three parts belong together.
    images, labels, rows = Loader(inputs, torch.arange(10), batch_size=4, seed=3).batch(4)
    assert torch.equal(labels, second[1])
    assert torch.equal(images[:, 0].long(), labels)
    assert torch.equal(rows, labels)


def test_bad_parts_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    with pytest.raises(ConfigError, match="does not exist"):
        Part.load(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        Part.load(path)
    save_file({"train_images": torch.zeros(2, 2)}, path)
    with pytest.raises(ConfigError, match="lacks test_images, test_labels, train_labels"):
        Part.load(path)
    images, labels = torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)
    Part(images, labels, images, labels).save(path)
    with pytest.raises(ConfigError, match="there must be one label a row"):
        Part.load(path)
    Part(images.double(), labels[:2], images, labels[:2]).save(path)
    with pytest.raises(ConfigError, match="float64 and must be float32"):
        Part.load(path)
    Part(images[:0], labels[:0], images, labels[:2]).save(path)
    with pytest.raises(ConfigError, match="no training images"):
        Part.load(path)


def test_datasets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data-dir"):
        load_dataset("mnist", None, 0)
    with pytest.raises(ConfigError, match="no MNIST in"):
        load_dataset("mnist", tmp_path, 0)
    with pytest.raises(ConfigError, match="unknown dataset 'cats'"):
        load_dataset("cats", None, 0)


def test_mnist_in_torchvisions_layout(shared_data: Path) -> None:
    whole = load_dataset("mnist", shared_data, 0)
    assert whole.train_images.shape == (60_000, 1, 28, 28)
    assert whole.test_labels.shape == (10_000,)
    assert abs(whole.train_images.mean().item()) < 0.01
