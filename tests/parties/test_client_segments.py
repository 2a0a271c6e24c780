"""A client's front and head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.parties_in_threads import CUT, model

from splitsec import SplitModel
from splitsec.errors import ConfigError
from splitsec.parties.client_segments import ClientSegments
from splitsec.tensors import read_tensors

U = "1,4"
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def test_a_u_has_a_head_and_another_cut_has_none() -> None:
    split = SplitModel(model(), U)
    with pytest.raises(ConfigError, match="needs a head"):
        ClientSegments(split.front, None, U)
    with pytest.raises(ConfigError, match="has no head"):
        ClientSegments(split.front, split.head, CUT)
    assert len(ClientSegments(split.front, split.head, U).modules) == 2


def test_the_segments_around_the_tail_are_the_model() -> None:
    split = SplitModel(model(), U)
    segments = ClientSegments(split.front, split.head, U)
    with torch.no_grad():
        output = segments.finish(split.tail(segments.activation(X)))
        assert torch.equal(output, split.eval()(X))


def test_values_that_have_changed_since_training_are_noticed() -> None:
    front = SplitModel(model(), CUT).front
    segments = ClientSegments(front, None, CUT)
    assert segments.origin().mark
    with torch.no_grad():
        next(front.parameters()).add_(1)
    with pytest.raises(ConfigError):
        segments.origin()


def test_both_segments_are_saved_in_one_file(tmp_path: Path) -> None:
    split = SplitModel(model(), U)
    ClientSegments(split.front, split.head, U).save(tmp_path / "front.safetensors", party="a")
    names = set(read_tensors(tmp_path / "front.safetensors", "weights", ""))
    assert names == {*split.front.state_dict(), *split.head.state_dict()}
