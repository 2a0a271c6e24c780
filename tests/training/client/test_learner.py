"""What a client brings into a run, and what its segments remember of it."""

from __future__ import annotations

import torch
from support.parties_in_threads import CUT, model, part

from splitsec import SplitModel
from splitsec.cut.origin import origin_of
from splitsec.randomness import RunRandomness
from splitsec.training.client.checkpoint import ClientCheckpoints
from splitsec.training.client.learner import Learner
from splitsec.training.flat_state import Combinable


def _learner() -> Learner:
    segments = [SplitModel(model(), CUT).front]
    data = part()
    return Learner(
        "a",
        CUT,
        segments,
        Combinable(segments),
        data,
        ClientCheckpoints(None, segments, data, name="a"),
        RunRandomness(1),
        report=lambda _event: None,
    )


def test_the_values_before_the_run_are_kept_apart() -> None:
    learner = _learner()
    first = learner.first.clone()
    with torch.no_grad():
        for parameter in learner.segments[0].parameters():
            parameter.zero_()
    assert torch.equal(learner.first, first)
    assert not torch.equal(learner.state.flat(), first)


def test_segments_of_a_run_that_is_not_over_belong_to_none() -> None:
    learner = _learner()
    architecture = origin_of(learner.segments[0]).architecture
    learner.remember_training()
    origin = origin_of(learner.segments[0])
    assert (origin.mark, origin.run, origin.architecture) == ("", "", architecture)
    learner.remember_run(mark="m", run="r", rounds=3)
    origin = origin_of(learner.segments[0])
    assert (origin.mark, origin.run, origin.rounds) == ("m", "r", 3)
    assert origin.digest


def test_the_data_are_not_in_what_is_printed() -> None:
    text = repr(_learner())
    assert "tensor" not in text
    # The control: the name, which is no secret, is.
    assert "'a'" in text
