"""The rows of an audit: half of them the attacker's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from splitsec.apps.audit_rows import AuditRun, load_rows
from splitsec.errors import ConfigError


def _run(path: Path, **arrays: np.ndarray) -> AuditRun:
    np.savez(path / "images.npz", **arrays)
    return AuditRun("model", ("cut",), input=path / "images.npz", seed=3)


def test_private_and_public_rows_have_none_in_common_and_labels_go_with_them(tmp_path: Path) -> None:
    labels = np.arange(101)
    images = np.broadcast_to(labels[:, None, None, None], (101, 1, 4, 4)).astype(np.float32)
    rows = load_rows(_run(tmp_path, images=images, labels=labels))
    assert rows.private_labels is not None
    assert rows.public_labels is not None
    assert (len(rows.private), len(rows.public)) == (50, 51)
    assert not set(rows.private_labels.tolist()) & set(rows.public_labels.tolist())
    assert torch.equal(rows.private[:, 0, 0, 0].long(), rows.private_labels)
    assert torch.equal(rows.public[:, 0, 0, 0].long(), rows.public_labels)


@pytest.mark.parametrize(
    ("shape", "said"), [((63, 1, 4, 4), "too few"), ((100, 16), r"shape \(100, 16\); attacks on images")]
)
def test_rows_that_cannot_be_attacked_are_refused(shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_rows(_run(tmp_path, images=np.zeros(shape, dtype=np.float32)))
