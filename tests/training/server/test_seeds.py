"""A run's seeds at the dealer: begun once, and renewed only where the dealer itself has lost them."""

from __future__ import annotations

import pytest
from support.server_parts import NAMES, ServerParts

from splitsec.errors import MessageError, RandomnessError, RestartedError
from splitsec.party_names import DEALER
from splitsec.training.messages import BeginRun, NewSeeds, OpenMasks
from splitsec.transport import NO_TENSORS


def test_the_dealer_is_told_of_the_run_first() -> None:
    run, begun = ServerParts(begun=False), []
    run.rounds.seeds.begin(begun.append)
    (request,) = run.outbox.take()
    assert isinstance(request.body, BeginRun)
    assert (request.body.run, request.body.start, request.body.fresh) == (run.state.id, run.state.start, True)
    assert begun == []
    run.outbox.dealer_answered(request.body, NO_TENSORS, 3.0)
    assert begun == [3.0]


def test_a_client_cannot_talk_the_server_into_new_seeds() -> None:
    """Control and attack: a client's word changes nothing while the dealer knows the run; the dealer's does."""
    run = ServerParts()
    start = run.state.start
    run.rounds.seeds.check_lost("a")
    (request,) = run.outbox.take()
    assert isinstance(request.body, OpenMasks)
    assert request.body.participants == ()
    run.outbox.dealer_failed(RandomnessError("a sum over no client"), 1.0)
    assert run.state.start == start
    assert run.taken() == [("a", "Refused")]
    run.rounds.seeds.check_lost("a")
    run.outbox.take()
    run.outbox.dealer_failed(RestartedError("unknown run"), 1.0)
    assert run.state.start != start


def test_new_seeds_make_everybody_upload_again() -> None:
    run = ServerParts()
    run.state.round.uploaded.add("a")
    run.rounds.seeds.check_lost("b")
    run.outbox.take()
    run.outbox.dealer_failed(RestartedError("unknown run"), 1.0)
    assert run.taken() == [(DEALER, "BeginRun")]
    run.outbox.dealer_answered(NewSeeds("", 0), NO_TENSORS, 2.0)
    assert run.state.round.uploaded == set()
    assert run.taken() == [(name, "NewSeeds") for name in NAMES]


def test_seeds_are_lost_by_members_of_a_run_alone() -> None:
    for run, name in ((ServerParts(begun=False), "a"), (ServerParts(), "stranger")):
        with pytest.raises(MessageError, match="SeedsLost was not due"):
            run.rounds.seeds.check_lost(name)
