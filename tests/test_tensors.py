"""Files that are not what they should be."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from splitsec.errors import ConfigError
from splitsec.tensors import read_tensors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "the file does not exist"),
        ("empty", b"", "it is empty"),
        ("rows.csv", b"a,b,y\n1,2,0\n", "it is text, such as CSV"),
        ("notes.txt", b"hello\n", "it is text, not"),
        ("w.pt", b"\x80\x02}q\x00.", "it is a pickle, such as torch.save writes"),
        ("w.gz", gzip.compress(b"x"), "compressed with gzip"),
        ("w.lfs", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("w.bin", b"\xff\x00\xfe" * 50, "damaged or incomplete"),
    ],
)
def test_what_a_file_is_instead(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_tensors(path, "weights", "save them")
    assert str(path) in str(caught.value)


def test_files_of_other_libraries_and_half_a_file(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / "w.pt")
    np.save(tmp_path / "w.npy", np.zeros(2))
    np.savez(tmp_path / "w.npz", x=np.zeros(2))
    save_file({"x": torch.zeros(100)}, tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-40])
    for name, kind in {
        "w.pt": "torch.save",
        "w.npy": "numpy",
        "w.npz": "npz",
        "half": "damaged",
        "": "directory",
    }.items():
        with pytest.raises(ConfigError, match=kind):
            read_tensors(tmp_path / name, "data", "write one")
    assert read_tensors(tmp_path / "whole", "data", "write one")["x"].shape == (100,)
