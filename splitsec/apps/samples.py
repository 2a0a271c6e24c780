"""What to predict, as a user's file has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from splitsec.cut import Signature
from splitsec.errors import ConfigError, CutError, first_line
from splitsec.tensors import NPZ, dtype_name, kind_of_file

_SAVE = "write one with numpy.savez(PATH, images=...)"


@dataclass(frozen=True)
class Samples:
    """What to predict: `images` (N, ...), and labels (N,) if they are known."""

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(default=None, repr=False)

    @staticmethod
    def load(path: Path, source: str = "") -> tuple[Samples, str]:
        """Read an npz file with `images` or a model's inputs by name, and perhaps `labels`.

        Args:
            source: the model that takes them, whose signature says which inputs it has.

        Returns:
            The samples, and the source with a signature: where it has none, that of the file's arrays.

        Raises:
            ConfigError: it cannot be read, has no inputs, or they are no real numbers.
            CutError: they are not the inputs of the model's signature.
        """
        arrays = _read(path)
        labels = arrays.pop("labels", None)
        place, signature = Signature.split(source)
        if not signature.inputs and "images" in arrays:
            inputs = _checked(arrays["images"], f"the images in {path}")
        else:
            inputs, signature = _packed(arrays, signature, path)
        if labels is not None and (labels.shape != tuple(inputs.shape[:1]) or labels.dtype.kind not in "iu"):
            raise ConfigError(f"the labels in {path} are {labels.dtype} {labels.shape}; give a whole number an image")
        labels_read = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        return Samples(inputs, labels_read), f"{place}{signature}"

    def fit(self, model: nn.Module, rows: int | None) -> Samples:
        """In the dtype that a model takes: whole numbers where it looks them up in a table, else real ones.

        Raises:
            ConfigError: they are of the other kind.
        """
        if rows is not None:
            if self.images.is_floating_point() or not 0 <= int(self.images.min()) <= int(self.images.max()) < rows:
                raise ConfigError(f"the model looks its input up: give whole numbers from 0 to {rows - 1}")
            return replace(self, images=self.images.long())
        if not self.images.is_floating_point():
            raise ConfigError(
                f"the images are {dtype_name(self.images)}; give real numbers, scaled as the model was trained: "
                "((images / 255 - mean) / std).astype('float32')"
            )
        return replace(self, images=self.images.to(next(model.parameters(), torch.empty(0)).dtype))


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Without pickle, which could run what is in the file.
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    except OSError as error:
        reason = "the file does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"cannot read {path}: {reason or first_line(error)}; {_SAVE}") from None
    except Exception as error:
        kind = f"{kind_of_file(path)}, not an npz file"
        if kind_of_file(path) == NPZ:
            objects = isinstance(error, ValueError) and "object" in str(error).lower()
            kind = "holds objects of Python, which are not read" if objects else "is damaged or incomplete"
        raise ConfigError(f"cannot read {path}: it {kind}; {_SAVE}") from None


def _checked(values: np.ndarray, what: str, *, least: int = 2) -> torch.Tensor:
    """Return an array (N, ...) as a tensor; raises `ConfigError` unless it holds finite numbers.

    Args:
        least: how many dimensions it has at least.
    """
    if values.ndim < least or not len(values):
        raise ConfigError(f"{what} have shape {values.shape}; give (N, ...) with at least one image")
    if values.dtype.kind not in ("fiu" if least > 1 else "fiub"):
        raise ConfigError(f"{what} are {values.dtype}; give numbers")
    if not np.isfinite(values).all():
        raise ConfigError(f"{what} hold a value that is not a finite number")
    return torch.from_numpy(np.ascontiguousarray(values))


def _packed(arrays: Mapping[str, np.ndarray], signature: Signature, path: Path) -> tuple[torch.Tensor, Signature]:
    """Return a model's inputs packed, and their signature."""
    names = [given.name for given in signature.inputs] or list(arrays)
    if not names:
        raise ConfigError(f"{path} has no array 'images'; write it with numpy.savez(PATH, images=...)")
    missing = [name for name in names if name not in arrays]
    if missing:
        has = ", ".join(arrays) or "no array"
        raise ConfigError(f"{path} has no array '{missing[0]}', which the model takes; it has {has}")
    values = {name: _checked(arrays[name], f"the '{name}' in {path}", least=1) for name in names}
    values = {name: value.float() if value.is_floating_point() else value for name, value in values.items()}
    if not signature.inputs:
        signature = Signature.of(values, signature.output)
    try:
        return signature.pack(values), signature
    except CutError as error:
        raise CutError(f"{path}: {error}") from None
