"""A client's rounds from a welcome on: what it sends, and which answers it takes."""

from __future__ import annotations

import copy

import pytest
import torch
from support.parties_in_threads import CUT, model, part

from splitsec import RunSettings, SplitModel
from splitsec.errors import MessageError
from splitsec.party_names import DEALER, SERVER
from splitsec.training.client.run import ClientRun, Participation
from splitsec.training.client.training import Training
from splitsec.training.messages import Batch, Gradient, Missed, RunSeed, Upload, Waiting, Welcome
from splitsec.transport import NO_TENSORS


def _begun(**settings: object) -> Training:
    run = ClientRun(
        [copy.deepcopy(SplitModel(model(), CUT).front)], part(), Participation("a", CUT, seed=1), checkpoints=None
    )
    run.begin()
    plan = RunSettings(**{"clients": ("a", "b"), "epochs": 2, "batch_size": 4, **settings})  # type: ignore[arg-type]
    welcome = Welcome("0" * 32, "1" * 32, plan, 0, 2)
    (request,) = run.handle(welcome, {"combined": None})
    assert request.to == DEALER
    assert run.training is not None
    return run.training


def test_a_round_begins_with_the_seed_of_the_dealer() -> None:
    training = _begun()
    (batch,) = training.handle(RunSeed(b"a" * 16), NO_TENSORS)
    assert (batch.to, batch.body) == (SERVER, Batch(0, 0, (6,)))
    assert batch.tensors["labels"].shape == (4,)


def test_as_many_batches_are_on_their_way_as_may_be_and_the_upload_is_last() -> None:
    training = _begun(batches_in_flight=2)
    sent = training.handle(RunSeed(b"a" * 16), NO_TENSORS)
    assert [outgoing.body.step for outgoing in sent] == [0, 1]
    for step in range(3):
        sent = training.handle(Gradient(0, step, 1.0, 2), {"gradient": [torch.zeros(4, 6)]})
    assert [type(outgoing.body) for outgoing in sent] == [Upload]


def test_an_answer_to_another_step_or_round_is_of_no_use() -> None:
    training = _begun()
    training.handle(RunSeed(b"a" * 16), NO_TENSORS)
    for body in (Gradient(0, 1, 1.0, 2), Gradient(1, 0, 1.0, 2), Waiting()):
        assert training.handle(body, {"gradient": [torch.zeros(4, 6)]}) == []
    # The control: the one that is due is answered.
    assert training.handle(Gradient(0, 0, 1.0, 2), {"gradient": [torch.zeros(4, 6)]})


def test_a_round_that_went_on_without_it_is_asked_for_once() -> None:
    training = _begun()
    training.handle(RunSeed(b"a" * 16), NO_TENSORS)
    (again,) = training.handle(Missed(0), NO_TENSORS)
    assert (again.to, type(again.body).__name__) == (SERVER, "Return")
    assert training.handle(Missed(0), NO_TENSORS) == []


def test_what_is_not_due_is_refused() -> None:
    with pytest.raises(MessageError, match="Batch was not due in training"):
        _begun().handle(Batch(0, 0, (6,)), NO_TENSORS)
    training = _begun()
    training.handle(RunSeed(b"a" * 16), NO_TENSORS)
    with pytest.raises(MessageError, match="row_norms was not due"):
        training.handle(Gradient(0, 0, 1.0, 2), {"gradient": [torch.zeros(4, 6)], "row_norms": torch.zeros(4)})
