"""A client's rows, its part of a dataset, in memory and in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from splitsec.cut import Signature
from splitsec.data.row_checks import check_inputs, check_labels_of
from splitsec.errors import ConfigError, CutError
from splitsec.tensors import dtype_name, read_tensors, shape_text, write_tensors


@dataclass(frozen=True)
class Part:
    """One client's data.

    Attributes:
        train_images, test_images: float32 (N, channels, height, width), or what else the model takes (numbers of tokens
            as int64); there may be no test images.
        train_labels, test_labels: int64 (N,).
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def save(self, path: Path) -> None:
        """Write the part as a safetensors file."""
        write_tensors(path, vars(self))

    @classmethod
    def load(cls, path: Path, signature: Signature = Signature()) -> Part:  # noqa: B008  (it is frozen)
        """Read and check a part; raises `ConfigError` saying what is wrong with the file.

        Args:
            signature: of a model of several inputs, each of which the file may hold by its name (`train_codes`).
        """
        tensors = read_tensors(path, "data", _ADVICE)
        for split in ("train", "test"):
            names = {given.name: f"{split}_{given.name}" for given in signature.inputs}
            if names and f"{split}_images" not in tensors and all(name in tensors for name in names.values()):
                try:
                    packed = signature.pack({given: tensors[name] for given, name in names.items()})
                except CutError as error:
                    raise ConfigError(f"{path}, {split}: {error}") from None
                tensors[f"{split}_images"] = packed
        missing = sorted(set(cls.__annotations__) - set(tensors))
        if missing:
            has = ", ".join(sorted(tensors)[:8]) or "nothing"
            raise ConfigError(f"{path} lacks {', '.join(missing)}; it has {has}")
        part = cls(**{name: tensors[name] for name in cls.__annotations__})
        part.check(f"{path}: ")
        return part

    def check(self, source: str = "") -> None:
        """Check everything that can be checked without a model or another party.

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
            train, test = (
                f"{shape_text(images.shape[1:])} ({dtype_name(images)})"
                for images in (self.train_images, self.test_images)
            )
            raise ConfigError(f"{source}train_images are {train} each and test_images {test}: bring them to one size")

    def doubts(self, source: str = "") -> list[str]:
        """Return a line for each thing that is not wrong, but seldom meant."""
        classes = self.train_labels.unique()
        if len(classes) == 1:
            return [
                f"{source}all {len(self.train_labels)} training labels are {int(classes[0])}: of a single class "
                "nothing is learned that tells it from others"
            ]
        return []


_ADVICE = "write one with splitsec.Part(train_images, train_labels, test_images, test_labels).save(path)"
