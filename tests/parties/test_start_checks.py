"""What a party looks at before it speaks with another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from splitsec.errors import ConfigError
from splitsec.parties.start_checks import check_directories, claim_directories, load_calibration
from splitsec.tensors import write_tensors


def test_directories_are_made_and_a_file_in_their_place_is_named(tmp_path: Path) -> None:
    check_directories(tmp_path, out="results/of/a", checkpoints=None)
    assert (tmp_path / "results" / "of" / "a").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match='out = "file" is a file, and must be a directory'):
        check_directories(tmp_path, out="file")


def test_no_two_parties_write_into_one_directory(tmp_path: Path) -> None:
    check_directories(tmp_path, out="out")
    claim_directories(tmp_path, "a", out="out")
    claim_directories(tmp_path, "a", out="out")
    with pytest.raises(ConfigError, match='out = "out" is the directory of a, .*out = "out-b"'):
        claim_directories(tmp_path, "b", out="out")


def test_a_calibration_is_finite_activations(tmp_path: Path) -> None:
    path = tmp_path / "calibration"
    write_tensors(path, {"activations": torch.ones(3, 4, dtype=torch.float64)})
    assert load_calibration(path).dtype == torch.float32
    for wrong, reason in (
        ({"other": torch.ones(3, 4)}, "lacks 'activations'"),
        ({"activations": torch.ones(3)}, r"give float32 \(N, ...\)"),
        ({"activations": torch.ones(3, 4, dtype=torch.int64)}, r"give float32 \(N, ...\)"),
        ({"activations": torch.full((3, 4), float("nan"))}, "not a finite number"),
    ):
        write_tensors(path, wrong)
        with pytest.raises(ConfigError, match=reason):
            load_calibration(path)
