"""The segments of a relay, handed from their holder to those who wait."""

from __future__ import annotations

import pytest
from support.server_parts import ServerParts

from splitsec.errors import MessageError, PartyTimeoutError
from splitsec.training.messages import Combined, Handed


def test_an_average_owes_nothing_and_takes_nothing_handed_on() -> None:
    run = ServerParts()
    run.rounds.handover.begin(["a", "b"])
    assert run.rounds.handover.owed == ()
    with pytest.raises(MessageError, match="Handed was not due"):
        run.rounds.handover.hand_on("a", Handed("a", 1), [], 1.0)


def test_an_end_is_sent_as_the_rule_says() -> None:
    run = ServerParts()
    run.rounds.handover.send_end("a", Combined(0, 0.5, 0.25))
    (sent,) = run.outbox.take()
    assert isinstance(sent.body, Combined)
    assert (sent.to, sent.body.loss) == ("a", 0.5)


def test_segments_that_come_too_late_are_left_out() -> None:
    run = ServerParts(aggregation="relay")
    run.state.number = 1
    run.rounds.handover.owed = ("b",)
    run.rounds.handover.hand_on("a", Handed("a", 99), [], 1.0)
    assert run.rounds.handover.owed == ("b",)
    assert run.taken() == []


def test_at_the_end_of_a_relay_those_without_segments_hear_who_has_them() -> None:
    run = ServerParts(aggregation="relay")
    run.parts.rule.holder, run.parts.rule.lost = "a", True
    run.rounds.handover.owed = ("b",)
    run.rounds.handover.tell_unserved()
    refused = [to for to, message in run.taken() if message == "Refused"]
    assert refused == [name for name in run.state.members if not run.parts.rule.serves(name)]
    run.state.last_end = Combined(1, 0.0, 0.0)
    for name in refused:
        with pytest.raises(PartyTimeoutError, match="are with a, which is gone"):
            run.rounds.handover.send_last_end(name)
