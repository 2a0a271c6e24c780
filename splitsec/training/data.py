"""A client's data: its part in a file of its own, the datasets of the demo, and batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import BatchSampler, RandomSampler

from splitsec.errors import ConfigError
from splitsec.files import whole_file
from splitsec.mpc.prg import SEED_BYTES, Stream
from splitsec.tensors import read_tensors
from splitsec.training.inspection import check_inputs, check_labels_of, kind, times
from splitsec.training.randomness import derived_seed

DATASETS = ("digits", "mnist")


@dataclass(frozen=True)
class Part:
    """One client's data: images float32 (N, channels, height, width), or what else the model takes (numbers of tokens
    as int64); labels int64 (N,)."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def save(self, path: Path) -> None:
        """Write the part as a safetensors file."""
        # Clones, since safetensors refuses tensors that share memory.
        with whole_file(path) as partial:
            save_file({name: tensor.contiguous().clone() for name, tensor in vars(self).items()}, partial)

    @classmethod
    def load(cls, path: Path) -> Part:
        """Read and check a part; raises `ConfigError` saying what is wrong with the file."""
        tensors = read_tensors(path, "data", _ADVICE)
        missing = sorted(set(cls.__annotations__) - set(tensors))
        if missing:
            has = ", ".join(sorted(tensors)[:8]) or "nothing"
            raise ConfigError(f"{path} lacks {', '.join(missing)}; it has {has}")
        part = cls(**{name: tensors[name] for name in cls.__annotations__})
        part.check(f"{path}: ")
        return part

    def check(self, source: str = "") -> None:
        """Look at everything before anybody else is asked for anything.

        Args:
            source: what the messages begin with, such as a file's name.

        Raises:
            ConfigError: a dtype, a shape, a label or a value that cannot be learned from; names the row, and says how
                to convert it.
        """
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if split == "test" and not images.numel() and not labels.numel():
                continue
            if images.dim() < 2:
                raise ConfigError(
                    f"{source}{split}_images have shape {tuple(images.shape)} and must have a row for each image, "
                    "(N, ...): images.unsqueeze(1) makes rows of single values"
                )
            check_inputs(images, f"{source}{split}_images")
            check_labels_of(labels, images, f"{source}{split}_labels")
        if not len(self.train_images):
            raise ConfigError(f"{source or 'the data '}holds no training images")
        if len(self.test_images) and (
            self.test_images.shape[1:] != self.train_images.shape[1:]
            or self.test_images.dtype != self.train_images.dtype
        ):
            one, other = (
                f"{times(images.shape[1:])} ({kind(images)})" for images in (self.train_images, self.test_images)
            )
            raise ConfigError(f"{source}train_images are {one} each and test_images {other}: bring them to one size")

    def doubts(self, source: str = "") -> list[str]:
        """What is not wrong, but seldom meant: one line each."""
        classes = self.train_labels.unique()
        if len(classes) == 1:
            return [
                f"{source}all {len(self.train_labels)} training labels are {int(classes[0])}: of a single class "
                "nothing is learned that tells it from others"
            ]
        return []


_ADVICE = "write one with splitsec.Part(train_images, train_labels, test_images, test_labels).save(path)"


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


class Loader:
    """A client's batches from its training data, shuffled anew each epoch: batch number `index` is always the same.

    A last batch of a single row is left out, since batch norm cannot train on one; each epoch leaves out another row.

    Args:
        seed: of the order of rows: 16 secret bytes, or a number where the order is no secret, as where all clients have
            the same.
    """

    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor | None, *, batch_size: int, seed: int | bytes
    ) -> None:
        self._inputs = inputs
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order: list[list[int]] = []
        self.samples = len(inputs)
        alone = batch_size > 1 and self.samples > 1 and self.samples % batch_size == 1
        self.per_epoch = -(-self.samples // batch_size) - alone

    def rows(self, index: int) -> torch.Tensor:
        """The numbers of a batch's rows, int64."""
        epoch, at = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            self._order = list(BatchSampler(self._sampler(epoch), self._batch_size, drop_last=False))
            self._epoch = epoch
        return torch.tensor(self._order[at])

    def _sampler(self, epoch: int) -> Iterable[int]:
        # From the epoch's own seed, so that a run can go on anywhere.
        if isinstance(self._seed, int):
            generator = torch.Generator().manual_seed(derived_seed(f"epoch {epoch}", self._seed))
            return RandomSampler(range(self.samples), generator=generator)
        # Sorting 64 random bits a row shuffles them; two that are alike are one in 2^64 / samples^2.
        words = Stream(self._seed, epoch).bytes(8 * self.samples).view(np.uint64)
        order: list[int] = np.argsort(words).tolist()
        return order

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Inputs, labels where there are some, and row numbers of a batch."""
        rows = self.rows(index)
        return self._inputs[rows], None if self._labels is None else self._labels[rows], rows


class PoissonLoader(Loader):
    """Batches for differential privacy: each row is in each batch with the same probability, whatever the others do.

    Who could tell which rows are in a batch would undo the gain by sampling, so they come from a secret seed.

    Args:
        rate: the probability.
        per_epoch: batches that count as an epoch.
        seed: 16 bytes.
    """

    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor | None, *, rate: float, per_epoch: int, seed: bytes
    ) -> None:
        super().__init__(inputs, labels, batch_size=len(inputs), seed=0)
        self._rate = rate
        self._key = seed[:SEED_BYTES]
        self.per_epoch = per_epoch

    def rows(self, index: int) -> torch.Tensor:
        # The top 53 of 64 random bits, as a number in [0, 1).
        uniform = (Stream(self._key, index).bytes(8 * self.samples).view(np.uint64) >> 11).astype(np.float64) * 2.0**-53
        return torch.from_numpy(np.flatnonzero(uniform < self._rate))
