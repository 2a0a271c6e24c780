"""What a client says first of its data and its segments: no value of either."""

from __future__ import annotations

import logging

import pytest
import torch
from support.parties_in_threads import CUT, model, part

from splitsec import Part, SplitModel
from splitsec.errors import ConfigError
from splitsec.training.client.checkpoint import ClientCheckpoints
from splitsec.training.client.greeting import TRAINS, columns_part, hello_of, inspect
from splitsec.training.flat_state import Combinable

FRONT = SplitModel(model(), CUT).front


def test_the_shape_of_an_activation_is_found_beforehand() -> None:
    assert inspect(part(), FRONT, name="a", cut=CUT)[1] == (6,)


def test_rows_that_the_front_cannot_take_are_refused_before_anything_is_sent() -> None:
    wrong = Part(torch.zeros(3, 5), torch.zeros(3).long(), torch.zeros(0, 5), torch.zeros(0).long())
    with pytest.raises(ConfigError):
        inspect(wrong, FRONT, name="a", cut=CUT)


def test_large_activations_are_said_to_be_large(caplog: pytest.LogCaptureFixture) -> None:
    usual = part()
    with caplog.at_level(logging.WARNING, "splitsec"):
        inspect(usual, FRONT, name="a", cut=CUT)
        assert "scale the images" not in caplog.text
        large = Part(usual.train_images * 1e4, usual.train_labels, usual.test_images, usual.test_labels)
        inspect(large, FRONT, name="a", cut=CUT)
    assert "scale the images" in caplog.text


def test_a_greeting_describes_shapes_and_counts() -> None:
    kept = ClientCheckpoints(None, [FRONT], part(), name="a")
    hello = hello_of(
        [FRONT], Combinable([FRONT]), kept, cut=CUT, samples=12, shape=(6,), columns=columns_part(part(), FRONT, TRAINS)
    )
    assert (hello.samples, hello.values, hello.shape, hello.columns) == (12, 30, (6,), None)
    assert dict(hello.segments)["0.weight"] == (6, 4)
    assert hello.rounds == (0,)
