"""Messages of training: read back as they were, with the tensors that they name and no others."""

from __future__ import annotations

import pytest
import torch
from support.parties_in_threads import hello

from splitsec import RunSettings
from splitsec.errors import MessageError
from splitsec.parties.messages import server_codec
from splitsec.training.messages import Batch, Combined, Gradient, Upload, Welcome
from splitsec.transport import Message, NamedTensors

ROWS = torch.zeros(2, 6)
LABELS = torch.zeros(2, dtype=torch.int64)


def _there_and_back(body: Message, tensors: NamedTensors) -> tuple[Message, NamedTensors]:
    return server_codec.decode(server_codec.encode(body, tensors))


def test_a_greeting_and_a_welcome_are_read_back() -> None:
    assert _there_and_back(hello(shape=(6,)), {})[0] == hello(shape=(6,))
    settings = RunSettings(clients=("a", "b"), epochs=7, learning_rate=0.5)
    welcome = Welcome("0" * 32, "1" * 32, settings, 0, 7)
    assert _there_and_back(welcome, {"combined": None})[0] == welcome


def test_tensors_come_by_name() -> None:
    _, tensors = _there_and_back(Batch(0, 0, (6,)), {"activation": [ROWS], "labels": LABELS})
    assert torch.equal(tensors["labels"], LABELS)
    _, tensors = _there_and_back(Batch(0, 0, (6,)), {"activation": [ROWS], "labels": None})
    assert tensors.get("labels") is None


@pytest.mark.parametrize(
    ("body", "tensors"),
    [
        (Batch(0, 0, (6,)), {"activation": [ROWS.double()], "labels": LABELS}),
        (Batch(0, 0, (6,)), {"activation": [ROWS], "labels": LABELS.float()}),
        (Batch(0, 0, (6,)), {"activation": [ROWS], "labels": LABELS[:1]}),
        (Upload(0), {"masked": [torch.zeros(3)]}),
        (Combined(0, 0.0, 0.0), {"combined": torch.zeros(3)}),
        (Gradient(0, 0, 0.0, 0), {"gradient": [ROWS], "row_norms": torch.zeros(3, 2)}),
    ],
)
def test_tensors_of_another_form_are_refused_where_they_come_in(body: Message, tensors: NamedTensors) -> None:
    with pytest.raises(MessageError):
        _there_and_back(body, tensors)
