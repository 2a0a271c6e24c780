"""Where a server's clients are: by which connection, and whether they are still there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from splitsec.errors import ConfigError, RefusedError
from splitsec.parties.roster import GONE_SECONDS, Roster
from splitsec.training.messages import Missed
from splitsec.transport import Sender


@dataclass
class Links:
    """Connections that a test ends as it likes."""

    sent: list[tuple[Sender, Any]] = field(default_factory=list)
    ended: set[bytes] = field(default_factory=set)

    def send(self, sender: Sender, body: Any, _tensors: Any = None) -> None:
        self.sent.append((sender, body))

    def has_ended(self, sender: Sender, _body: Any) -> bool:
        return sender.route in self.ended

    def is_there(self, sender: Sender, _body: Any) -> bool:
        return sender.route not in self.ended


def _roster() -> tuple[Roster, Links]:
    links = Links()
    return Roster(links, ("a", "b")), links  # type: ignore[arg-type]


def _sender(name: str, route: bytes) -> Sender:
    return Sender(name, route)


def test_a_message_goes_where_the_client_was_heard_of_last() -> None:
    roster, links = _roster()
    assert roster.reached_at(_sender("a", b"1")) is None
    assert roster.reached_at(_sender("a", b"2")) == _sender("a", b"1")
    roster.send("a", Missed(0))
    assert links.sent == [(_sender("a", b"2"), Missed(0))]
    assert roster.is_earlier(_sender("a", b"1"))
    assert not roster.is_earlier(_sender("a", b"2"))
    assert not roster.is_earlier(_sender("b", b"1"))


def test_a_second_process_with_the_same_key_is_refused_while_the_first_is_there() -> None:
    roster, links = _roster()
    roster.reached_at(_sender("a", b"1"))
    with pytest.raises(RefusedError, match="another process with the name and the key of a"):
        roster.check_twin(_sender("a", b"2"))
    # The controls: the same one again, and another after the first has ended.
    roster.check_twin(_sender("a", b"1"))
    links.ended.add(b"1")
    roster.check_twin(_sender("a", b"2"))


def test_who_vanishes_is_waited_for_and_then_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    roster, links = _roster()
    clock = [100.0]
    monkeypatch.setattr("splitsec.parties.roster.time.monotonic", lambda: clock[0])
    for name in ("a", "b"):
        roster.reached_at(_sender(name, name.encode()))
    links.ended.add(b"b")
    assert roster.vanished() == []
    clock[0] += GONE_SECONDS + 1
    assert roster.vanished() == ["b"]


def test_all_have_left_when_those_who_ended_in_training_have_too() -> None:
    roster, _ = _roster()
    roster.left.add("a")
    roster.ended.add("b")
    assert not roster.all_left(trained=False)
    assert roster.all_left(trained=True)
    roster.came_back(_sender("a", b"1"))
    assert roster.present == ["a", "b"]


def test_an_error_goes_to_everybody_who_has_come() -> None:
    roster, links = _roster()
    roster.reached_at(_sender("a", b"1"))
    roster.refuse_all(ConfigError("over"))
    assert [(sender.name, body.reason) for sender, body in links.sent] == [("a", "over")]
