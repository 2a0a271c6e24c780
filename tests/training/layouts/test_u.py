"""A U: labels stay with the clients, which send the gradient of the tail's output."""

from __future__ import annotations

import pytest
import torch
from support.parties_in_threads import model

from splitsec import RunSettings, SplitModel
from splitsec.errors import MessageError
from splitsec.randomness import OwnRandomness
from splitsec.training.layouts import LAYOUTS
from splitsec.training.layouts.base import StepGatherer
from splitsec.training.messages import Batch, HeadGradient
from splitsec.training.tail import TailTrainer

U = "1,4"
ACTIVATION = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def _steps() -> StepGatherer:
    tail = SplitModel(model(), U).tail
    trainer = TailTrainer(tail, learning_rate=0.01, randomness=OwnRandomness(1))
    steps = LAYOUTS.get("u").gatherer(trainer, cut=U, settings=RunSettings(clients=("a", "b")))
    steps.begin({"a": 4, "b": 4})
    return steps


def test_a_step_goes_there_and_back_twice() -> None:
    steps = _steps()
    for name in ("a", "b"):
        steps.add(name, Batch(0, 0, (6,)), {"activation": [ACTIVATION], "labels": None})
    outputs = list(steps.step_when_complete(["a", "b"]))
    assert [tuple(answer.tensors["output"].shape) for answer in outputs] == [(2, 5), (2, 5)]
    assert steps.owes("a")
    for name in ("a", "b"):
        steps.add(name, HeadGradient(0, 0), {"gradient": torch.ones(2, 5)})
    gradients = list(steps.step_when_complete(["a", "b"]))
    assert [tuple(answer.tensors["gradient"][0].shape) for answer in gradients] == [(2, 6), (2, 6)]
    assert not steps.owes("a")


def test_labels_are_refused_since_they_stay_at_the_client() -> None:
    with pytest.raises(MessageError, match="they stay at the client"):
        _steps().add("a", Batch(0, 0, (6,)), {"activation": [ACTIVATION], "labels": torch.zeros(2).long()})


def test_a_gradient_of_another_shape_is_refused() -> None:
    steps = _steps()
    for name in ("a", "b"):
        steps.add(name, Batch(0, 0, (6,)), {"activation": [ACTIVATION], "labels": None})
    list(steps.step_when_complete(["a", "b"]))
    with pytest.raises(MessageError, match="has shape 3x5, expected 2x5"):
        steps.add("a", HeadGradient(0, 0), {"gradient": torch.zeros(3, 5)})
