from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from splitsec.data.datasets import load_dataset
from splitsec.data.rows import Part
from splitsec.errors import ConfigError


def test_a_part_survives_its_file(tmp_path: Path) -> None:
    part = load_dataset("digits", None, 0)
    part.save(tmp_path / "part.safetensors")
    back = Part.load(tmp_path / "part.safetensors")
    assert all(torch.equal(value, vars(back)[name]) for name, value in vars(part).items())


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
