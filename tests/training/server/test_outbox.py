"""What a run has to say, and the one request to the dealer whose answer it waits for."""

from __future__ import annotations

import pytest

from splitsec.errors import ConfigError, MessageError
from splitsec.party_names import DEALER
from splitsec.training.messages import Missed
from splitsec.training.server.outbox import Outbox, RunFailed
from splitsec.transport import NO_TENSORS, Refused


def test_messages_are_taken_once_and_in_order() -> None:
    outbox = Outbox()
    outbox.send("a", Missed(1))
    outbox.refuse("b", ConfigError("no"))
    first, second = outbox.take()
    assert (first.to, first.body) == ("a", Missed(1))
    assert (second.to, second.body) == ("b", Refused(reason="no", error="ConfigError"))
    assert outbox.take() == []


def test_the_answer_of_the_dealer_goes_to_who_asked() -> None:
    outbox, answers = Outbox(), []
    outbox.ask_dealer(Missed(1), lambda body, _tensors, now: answers.append((body, now)))
    assert [outgoing.to for outgoing in outbox.take()] == [DEALER]
    outbox.dealer_answered(Missed(2), NO_TENSORS, 5.0)
    assert answers == [(Missed(2), 5.0)]
    with pytest.raises(MessageError, match="Missed was not due"):
        outbox.dealer_answered(Missed(3), NO_TENSORS, 6.0)


def test_an_error_of_the_dealer_ends_the_run_unless_somebody_takes_it() -> None:
    outbox, errors = Outbox(), []
    outbox.ask_dealer(Missed(1), lambda *_: None, lambda error, _now: errors.append(str(error)))
    outbox.dealer_failed(ConfigError("gone"), 1.0)
    assert errors == ["gone"]
    outbox.ask_dealer(Missed(1), lambda *_: None)
    with pytest.raises(RunFailed) as failed:
        outbox.dealer_failed(ConfigError("gone"), 1.0)
    assert isinstance(failed.value.reason, ConfigError)
