"""Rounds at the server, without clients: who is dropped, which messages belong to a round, and how one ends."""

from __future__ import annotations

import pytest
import torch
from support.server_parts import NAMES, ServerParts

from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError, RefusedError
from splitsec.events import Dropped
from splitsec.party_names import DEALER
from splitsec.training.messages import MaskSum, Unseeded
from splitsec.training.server.outbox import RunFailed


def _upload(run: ServerParts, name: str) -> None:
    length = run.state.members[name].values + run.parts.layout.figures
    run.rounds.add_upload(name, {"masked": [torch.zeros(length, dtype=torch.int64)]}, 1.0)


def test_the_last_upload_asks_the_dealer_for_the_sum_of_masks() -> None:
    run = ServerParts()
    for name in NAMES:
        assert run.taken() == []
        _upload(run, name)
    assert run.taken() == [(DEALER, "OpenMasks")]


def test_an_upload_is_taken_once_and_in_the_form_that_is_due() -> None:
    run = ServerParts()
    with pytest.raises(MessageError, match="row_norms was not due"):
        run.rounds.add_upload("a", {"masked": [], "row_norms": torch.zeros(1)}, 1.0)
    assert run.state.round.uploaded == set()
    _upload(run, "a")
    with pytest.raises(MessageError, match="a has sent its part and must wait"):
        _upload(run, "a")


def test_the_round_ends_with_the_sum_and_the_next_one_begins() -> None:
    run = ServerParts()
    for name in NAMES:
        _upload(run, name)
    run.outbox.take()
    length = run.state.members["a"].values + run.parts.layout.figures
    # A weight of one in fixed point, so that the average is over something.
    mask_sum = torch.zeros(length, dtype=torch.int64)
    run.outbox.dealer_answered(MaskSum(0), {"mask_sum": mask_sum}, 2.0)
    assert [message for _, message in run.taken()] == ["Combined"] * 3
    assert (run.state.number, run.state.finished, run.state.round.number) == (1, False, 1)


def test_a_sum_of_another_round_ends_the_run() -> None:
    run = ServerParts()
    for name in NAMES:
        _upload(run, name)
    with pytest.raises(RunFailed, match="answered another request"):
        run.outbox.dealer_answered(MaskSum(1), {"mask_sum": torch.zeros(3, dtype=torch.int64)}, 2.0)


def test_an_upload_without_a_seed_at_the_dealer_is_left_out_and_its_sender_told() -> None:
    run = ServerParts()
    for name in NAMES:
        _upload(run, name)
    run.outbox.take()
    run.outbox.dealer_answered(Unseeded(0, ("c",)), {}, 2.0)
    assert run.taken() == [("c", "Refused"), (DEALER, "OpenMasks")]
    for name in NAMES[:2]:
        assert name in run.state.round.active
    with pytest.raises(RunFailed) as failed:
        run.outbox.dealer_answered(Unseeded(0, ("b",)), {}, 3.0)
    assert isinstance(failed.value.reason, RandomnessError)


def test_who_is_dropped_is_told_and_too_few_end_the_run() -> None:
    run = ServerParts()
    run.rounds.drop(["c"], "sent nothing", 1.0)
    assert run.taken() == [("c", "Missed")]
    assert [event.name for event in run.events if isinstance(event, Dropped)] == ["c"]
    with pytest.raises(RunFailed, match="b sent nothing; only a is left, and the minimum is 2") as failed:
        run.rounds.drop(["b"], "sent nothing", 2.0)
    assert isinstance(failed.value.reason, PartyTimeoutError)


def test_a_message_belongs_to_its_round_alone() -> None:
    run = ServerParts()
    assert run.rounds.takes("a", 0)
    with pytest.raises(MessageError, match="round 1 is not running"):
        run.rounds.takes("a", 1)
    with pytest.raises(RefusedError, match="stranger has not joined"):
        run.rounds.takes("stranger", 0)
    run.rounds.drop(["c"], "sent nothing", 1.0)
    run.outbox.take()
    assert not run.rounds.takes("c", 0)
    assert run.taken() == [("c", "Missed")]
    with pytest.raises(RefusedError, match="no training is running"):
        ServerParts(begun=False).rounds.takes("a", 0)
