from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from splitsec.errors import ConfigError
from splitsec.training.data import Part, deal_parts, load_dataset, training_batches


def test_parts_are_disjoint_and_complete_and_reproducible() -> None:
    whole = load_dataset("digits", None, 0)
    assert len(whole.test_labels) == 360
    parts = deal_parts(whole, 3, 0)
    rows = torch.cat([part.train_images for part in parts])
    assert sorted(map(bytes, rows.numpy())) == sorted(map(bytes, whole.train_images.numpy()))
    assert sum(len(part.test_labels) for part in parts) == 360
    again = deal_parts(load_dataset("digits", None, 0), 3, 0)
    assert all(torch.equal(a.train_images, b.train_images) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(parts[0].train_images, deal_parts(whole, 3, 1)[0].train_images)


def test_a_part_survives_its_file(tmp_path: Path) -> None:
    part = deal_parts(load_dataset("digits", None, 0), 5, 0)[2]
    part.save(tmp_path / "part.safetensors")
    back = Part.load(tmp_path / "part.safetensors")
    assert all(torch.equal(value, vars(back)[name]) for name, value in vars(part).items())


def test_batches_cover_the_part_once_an_epoch_in_a_new_order() -> None:
    part = Part(torch.arange(10.0)[:, None], torch.arange(10), torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    batches = training_batches(part, batch_size=4, seed=3)
    first, second = ([labels for _, labels in batches] for _ in range(2))
    assert [len(one) for one in first] == [4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    assert all(torch.equal(images[:, 0].long(), labels) for images, labels in batches)


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
    with pytest.raises(ConfigError, match="differ in number"):
        Part.load(path)
    Part(images.double(), labels[:2], images, labels[:2]).save(path)
    with pytest.raises(ConfigError, match="must be float32"):
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
    with pytest.raises(ConfigError, match="cannot be dealt"):
        deal_parts(load_dataset("digits", None, 0), 500, 0)


def test_mnist_in_torchvisions_layout(shared_data: Path) -> None:
    whole = load_dataset("mnist", shared_data, 0)
    assert whole.train_images.shape == (60_000, 1, 28, 28)
    assert whole.test_labels.shape == (10_000,)
    assert abs(whole.train_images.mean().item()) < 0.01
