"""Files of tensors in the safetensors format, and how messages describe tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from splitsec.errors import ConfigError, first_line
from splitsec.files import whole_file

SAVE_WEIGHTS = "save them with safetensors.torch.save_file(model.state_dict(), PATH)"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, which is there as a whole or not at all; raises `OSError` where it cannot."""
    # Clones, since safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as partial:
        save_file(copies, partial, metadata)


def read_tensors(path: Path, what: str, advice: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file.

    Args:
        what: what it is for, such as `weights`.
        advice: how to make such a file.

    Raises:
        ConfigError: it is not there or of another kind; says of which, and what to do.
    """
    if not path.exists():
        raise ConfigError(f"cannot read {what} from {path}: the file does not exist")
    if path.is_dir():
        raise ConfigError(f"cannot read {what} from {path}: it is a directory; {advice}")
    try:
        return load_file(path)
    except OSError as error:
        raise ConfigError(f"cannot read {what} from {path}: {error.strerror or first_line(error)}") from None
    except Exception as error:
        raise ConfigError(
            f"cannot read {what} from {path}: it {kind_of_file(path)}, not a safetensors file; {advice}"
        ) from error


def dtype_name(tensor: torch.Tensor) -> str:
    """Return a tensor's dtype as people write it: `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as people write it: `3x8x8`."""
    return "x".join(map(str, shape)) or "a single number"


NPZ = "is an npz file of numpy"


def kind_of_file(path: Path) -> str:
    """Say what a file is that is not of safetensors, by how it begins."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty"
    if start[:4] == b"PK\x03\x04":
        return NPZ if path.suffix == ".npz" else "is a file of torch.save"
    for mark, kind in (
        (b"\x93NUMPY", "a file of numpy"),
        (b"\x80", "a pickle, such as torch.save writes"),
        (b"\x89HDF", "an HDF5 file"),
        (b"PAR1", "a Parquet file"),
        (b"\x1f\x8b", "compressed with gzip"),
    ):
        if start.startswith(mark):
            return f"is {kind}"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, whose content has not been fetched"
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        text = start[: error.start].decode() if error.start > 500 else ""
    if text and "\0" not in text:
        return "is text, such as CSV" if "," in text or "\t" in text or ";" in text else "is text"
    return "is damaged or incomplete"
