"""Reading files that users give: weights and data in the safetensors format."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from splitsec.errors import ConfigError, first_line

SAVE_WEIGHTS = "save them with safetensors.torch.save_file(model.state_dict(), PATH)"


def read_tensors(path: Path, what: str, advice: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

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


NPZ = "is an npz file of numpy"


def kind_of_file(path: Path) -> str:
    """What a file is that is not of safetensors, by how it begins."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty"
    if start[:4] == b"PK\x03\x04":
        return NPZ if path.suffix == ".npz" else "is a file of torch.save"
    for mark, kind_of_file in (
        (b"\x93NUMPY", "a file of numpy"),
        (b"\x80", "a pickle, such as torch.save writes"),
        (b"\x89HDF", "an HDF5 file"),
        (b"PAR1", "a Parquet file"),
        (b"\x1f\x8b", "compressed with gzip"),
    ):
        if start.startswith(mark):
            return f"is {kind_of_file}"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, whose content has not been fetched"
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        text = start[: error.start].decode() if error.start > 500 else ""
    if text and "\0" not in text:
        return "is text, such as CSV" if "," in text or "\t" in text or ";" in text else "is text"
    return "is damaged or incomplete"
