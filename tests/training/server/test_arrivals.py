"""Clients that come, come back, and give up."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.server_parts import NAMES, ServerParts

from splitsec.errors import RefusedError
from splitsec.events import Dropped, Joined
from splitsec.training.server.arrivals import Arrivals
from splitsec.training.server.outbox import RunFailed


def _arrivals(run: ServerParts) -> Arrivals:
    return Arrivals(run.parts, run.state, run.outbox, run.rounds)


def test_a_client_is_a_member_once_it_is_known_to_fit() -> None:
    run = ServerParts(begun=False)
    arrivals = _arrivals(run)
    with pytest.raises(RefusedError, match="cuts at '3', the server at '1'"):
        arrivals.greet("a", run.hello(cut="3"), 1.0)
    assert run.state.members == {}
    arrivals.greet("a", run.hello(), 1.0)
    assert list(run.state.members) == ["a"]
    assert isinstance(run.events[-1], Joined)


def test_a_client_that_is_started_again_is_welcomed_into_the_next_round() -> None:
    run = ServerParts()
    _arrivals(run).greet("c", run.hello(), 1.0)
    assert run.state.round.active == ["a", "b"]
    assert run.state.returning == {"c"}
    assert ("c", "Welcome") in run.taken()


def test_with_checkpoints_the_round_begins_anew_rather_than_end_for_too_few(tmp_path: Path) -> None:
    kept = ServerParts(tmp_path, minimum_clients=3)
    _arrivals(kept).greet("c", kept.hello(), 1.0)
    assert kept.state.number is None
    assert list(kept.state.members) == ["c"]
    assert kept.taken() == [("a", "GreetAgain"), ("b", "GreetAgain")]
    # The control: without checkpoints the run ends.
    lost = ServerParts(minimum_clients=3)
    with pytest.raises(RunFailed, match="was started again"):
        _arrivals(lost).greet("c", lost.hello(), 1.0)


def test_other_data_than_at_the_beginning_is_refused() -> None:
    run = ServerParts()
    with pytest.raises(RefusedError, match="c has 13 samples now and began with 12"):
        _arrivals(run).greet("c", run.hello(samples=13), 1.0)
    assert run.state.round.active == list(NAMES)


def test_who_gives_up_is_not_waited_for() -> None:
    run = ServerParts()
    _arrivals(run).give_up("b", "gave up", 1.0)
    assert run.state.round.active == ["a", "c"]
    early = ServerParts(begun=False)
    _arrivals(early).greet("a", early.hello(), 1.0)
    _arrivals(early).give_up("a", "gave up", 1.0)
    assert early.state.members == {}
    assert isinstance(early.events[-1], Dropped)
