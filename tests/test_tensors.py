"""Files that are not what they should be."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from splitsec.errors import ConfigError
from splitsec.tensors import dtype_name, read_tensors, shape_text, write_tensors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "the file does not exist"),
        ("empty", b"", "it is empty"),
        ("rows.csv", b"a,b,y\n1,2,0\n", "it is text, such as CSV"),
        ("notes.txt", b"hello\n", "it is text, not"),
        ("w.pt", b"\x80\x02}q\x00.", "it is a pickle, such as torch.save writes"),
        ("w.gz", gzip.compress(b"x", mtime=0), "compressed with gzip"),
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


def test_tensors_that_share_memory_or_learn_come_back_with_their_metadata(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3).requires_grad_()
    write_tensors(tmp_path / "x", {"whole": whole, "turned": whole.T, "row": whole[0]}, {"party": "ada"})
    tensors = read_tensors(tmp_path / "x", "data", "write one")
    assert torch.equal(tensors["turned"], whole.T)
    assert torch.equal(tensors["row"], whole[0])
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"party": "ada"}


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "x", {"x": torch.zeros(1)})

    def no_space(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("splitsec.tensors.save_file", no_space)
    with pytest.raises(OSError, match="no space"):
        write_tensors(tmp_path / "x", {"x": torch.ones(1)})
    assert read_tensors(tmp_path / "x", "data", "write one")["x"].item() == 0


def test_tensors_are_described_as_people_write_them() -> None:
    assert dtype_name(torch.zeros(1).half()) == "float16"
    assert shape_text(torch.zeros(3, 8, 8).shape) == "3x8x8"
    assert shape_text(()) == "a single number"
