"""Segments that do not belong together are refused, and those that do are taken."""

import pytest
import torch
from torch import nn

from splitsec.cut import Origin, SplitModel, origin_of, set_origin
from splitsec.cut.belonging import check_belongs, check_unchanged
from splitsec.errors import ConfigError, RefusedError


def _split() -> SplitModel:
    return SplitModel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "1")


def test_a_front_of_another_run_is_refused_with_both_runs() -> None:
    front, tail = (Origin(mark=digit * 32, run=digit * 32, rounds=3) for digit in "12")
    with pytest.raises(
        RefusedError, match="the front of a does not .*of run 11111111 after 3 rounds, the tail of run 22"
    ):
        check_belongs("a", front, tail)
    check_belongs("a", tail, tail)


def test_segments_whose_values_have_changed_are_refused_until_they_are_marked() -> None:
    split = _split()
    check_unchanged([split.front], "front")
    with torch.no_grad():
        split.front.get_parameter("0.weight").add_(1)
    with pytest.raises(ConfigError, match=r"the front's values have changed since the model was cut.*SplitModel\.mark"):
        check_unchanged([split.front], "front")
    check_unchanged([split.tail], "tail")
    split.mark()
    check_unchanged([split.front], "front")


def test_a_segment_that_a_run_trained_names_the_run() -> None:
    split = _split()
    set_origin(split.tail, Origin(mark="1" * 32, run="1" * 32, rounds=3, digest="another"))
    with pytest.raises(ConfigError, match="the tail has changed since it was trained in run 11111111 after 3 rounds"):
        check_unchanged([split.tail], "tail")
    # Nothing is compared where nothing was remembered.
    set_origin(split.tail, Origin(mark="1" * 32))
    assert origin_of(split.tail).digest == ""
    check_unchanged([split.tail], "tail")
