"""The federated data loader: a dataset dealt into parts, one file a client, and a client's batches from its part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from splitsec.errors import ConfigError

Batches: TypeAlias = "DataLoader[tuple[torch.Tensor, ...]]"
DATASETS = ("digits", "mnist")


@dataclass(frozen=True)
class Part:
    """One client's data: images float32 (N, channels, height, width), labels int64 (N,)."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def save(self, path: Path) -> None:
        """Write the part as a safetensors file."""
        # Clones, since safetensors refuses tensors that share memory.
        save_file({name: tensor.contiguous().clone() for name, tensor in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> Part:
        """Read and check a part; raises `ConfigError` saying what is wrong with the file."""
        try:
            tensors = load_file(path)
        except FileNotFoundError:
            raise ConfigError(f"the data file {path} does not exist") from None
        except Exception as error:
            raise ConfigError(f"{path} is not a safetensors file: {str(error).splitlines()[0]}") from error
        missing = sorted(set(cls.__annotations__) - set(tensors))
        if missing:
            raise ConfigError(f"{path} lacks {', '.join(missing)}")
        part = cls(**{name: tensors[name] for name in cls.__annotations__})
        for split in ("train", "test"):
            images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
            if images.dtype != torch.float32 or labels.dtype != torch.int64:
                raise ConfigError(f"{path}: {split}_images must be float32 and {split}_labels int64")
            if images.dim() < 2 or labels.shape != images.shape[:1]:
                raise ConfigError(f"{path}: {split}_images and {split}_labels differ in number")
        if not len(part.train_images):
            raise ConfigError(f"{path} holds no training images")
        return part


def load_dataset(name: str, data_dir: Path | None, seed: int) -> Part:
    """A whole dataset as one part.

    Args:
        name: `digits` (1,797 images of 8x8 inside scikit-learn, of which 360 are held out) or `mnist`.
        data_dir: for MNIST, the directory with torchvision's layout (`MNIST/raw/...` below it).
        seed: decides which digits are held out.

    Raises:
        ConfigError: an unknown name, or MNIST files that are not there.
    """
    if name == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        bunch = load_digits()
        images = (bunch.images[:, None] / 16.0).astype(np.float32)
        train_x, test_x, train_y, test_y = train_test_split(
            images, bunch.target.astype(np.int64), test_size=360, random_state=seed, stratify=bunch.target
        )
        return Part(*(torch.from_numpy(array) for array in (train_x, train_y, test_x, test_y)))
    if name == "mnist":
        from torchvision.datasets import MNIST

        if data_dir is None:
            raise ConfigError("MNIST is not part of the package: say where it lies: --data-dir DIR (DIR/MNIST/raw/)")
        try:
            sets = [MNIST(str(data_dir), train=train, download=False) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"no MNIST in {data_dir}: expected the four IDX files in {data_dir}/MNIST/raw") from error
        images = [((one.data.float() / 255 - 0.1307) / 0.3081).unsqueeze(1) for one in sets]
        return Part(images[0], sets[0].targets.long(), images[1], sets[1].targets.long())
    raise ConfigError(f"unknown dataset '{name}'; choose one of: {', '.join(DATASETS)}")


def deal_parts(whole: Part, clients: int, seed: int) -> list[Part]:
    """Deal a dataset into disjoint parts of equal size, give or take one, by a seeded shuffle.

    Raises:
        ConfigError: more clients than samples.
    """
    if clients < 1 or len(whole.train_labels) < clients or len(whole.test_labels) < clients:
        raise ConfigError(f"{len(whole.train_labels)} training images cannot be dealt to {clients} clients")
    shuffle = np.random.default_rng(seed)
    train = np.array_split(shuffle.permutation(len(whole.train_labels)), clients)
    test = np.array_split(shuffle.permutation(len(whole.test_labels)), clients)
    return [
        Part(whole.train_images[rows], whole.train_labels[rows], whole.test_images[held], whole.test_labels[held])
        for rows, held in zip(map(torch.from_numpy, train), map(torch.from_numpy, test), strict=True)
    ]


def training_batches(part: Part, *, batch_size: int, seed: int) -> Batches:
    """A `DataLoader` over a client's training images: shuffled anew each epoch, whole batches indexed at once."""
    dataset = TensorDataset(part.train_images, part.train_labels)
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    return DataLoader(dataset, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None)
