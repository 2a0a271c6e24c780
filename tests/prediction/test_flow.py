"""Corrections within the credit of whoever gets them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import world

from splitsec.errors import RandomnessError
from splitsec.mpc.beaver import SquarePair
from splitsec.mpc.session.messages import LeaveSession
from splitsec.mpc.session.plan import PART_ELEMENTS
from splitsec.parties.messages import DealerBody, dealer_codec
from splitsec.prediction import flow as flow_module
from splitsec.prediction.corrections import corrections, join_session
from splitsec.prediction.flow import MOST_WINDOW, Flow
from splitsec.transport import Link, Sender, Wire
from splitsec.transport.sockets import HIGH_WATER

PART = torch.zeros(100, dtype=torch.int64)
SIZE = PART.nbytes
SLOW, OTHER = Sender("client-1", b"1"), Sender("client-2", b"2")


class _Now:
    """Stands for the pool: whatever is submitted has run when `submit` returns."""

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        function(*args)


class _Dealt:
    """What a flow has emitted, and how many parts were computed."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}
        self.errors: list[Exception] = []
        self.computed = 0
        self.blocked: set[str] = set()
        self.flow = Flow(_Now(), self._emit, lambda to: to.name in self.blocked)  # type: ignore[arg-type]

    def _emit(self, to: Sender, _query: int, made: torch.Tensor | Exception) -> None:
        if isinstance(made, Exception):
            self.errors.append(made)
        else:
            self.parts[to.name] = self.parts.get(to.name, 0) + 1

    def deal(self, to: Sender, count: int, window: int, *, session: str = "a", query: int = 0) -> None:
        def compute() -> Iterator[torch.Tensor]:
            for _ in range(count):
                self.computed += 1
                yield PART

        self.flow.begin(to, session, query, compute(), size=count * SIZE, window=window)


def test_no_more_is_computed_than_there_is_credit_for() -> None:
    dealt = _Dealt()
    dealt.deal(SLOW, 50, 3 * SIZE)
    assert (dealt.computed, dealt.parts) == (3, {"client-1": 3})
    dealt.flow.resume(lambda _: True)
    assert dealt.computed == 3
    # Grants of another query, session or party come to nothing.
    dealt.flow.more(SLOW, "a", 1, SIZE)
    dealt.flow.more(SLOW, "b", 0, SIZE)
    dealt.flow.more(OTHER, "a", 0, SIZE)
    assert dealt.computed == 3
    dealt.flow.more(SLOW, "a", 0, 2 * SIZE)
    assert dealt.computed == 5
    dealt.deal(OTHER, 4, MOST_WINDOW)
    assert dealt.parts == {"client-1": 5, "client-2": 4}
    assert len(dealt.flow) == 1


def test_control_a_window_for_everything_is_everything_at_once() -> None:
    dealt = _Dealt()
    dealt.deal(SLOW, 50, 50 * SIZE)
    assert dealt.computed == 50
    assert len(dealt.flow) == 0


def test_a_query_that_ends_with_its_credit_is_over() -> None:
    dealt = _Dealt()
    for query in range(3):
        dealt.flow.check(SLOW, "a")
        dealt.deal(SLOW, 2, 2 * SIZE, query=query)
        assert len(dealt.flow) == 0
    assert dealt.parts == {"client-1": 6}


def test_one_query_at_a_time() -> None:
    dealt = _Dealt()
    dealt.deal(SLOW, 5, SIZE)
    with pytest.raises(RandomnessError, match="query 0 of session a is still being dealt"):
        dealt.flow.check(SLOW, "a")
    dealt.flow.check(OTHER, "a")
    dealt.flow.check(SLOW, "b")


def test_who_grants_without_end_gets_what_its_connection_takes() -> None:
    dealt = _Dealt()
    dealt.deal(SLOW, 1000, SIZE)
    dealt.blocked = {"client-1"}
    for _ in range(100):
        dealt.flow.more(SLOW, "a", 0, 1 << 30)
    assert dealt.computed == 1
    dealt.blocked = set()
    dealt.flow.resume(lambda _: True)
    assert dealt.computed == 1000


def test_all_together_are_bounded_and_each_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "MOST_BYTES", 10 * SIZE)
    dealt = _Dealt()
    for number in range(8):
        dealt.deal(Sender(f"client-{number}", bytes([number])), 20, 9 * SIZE, session=str(number))
    # The first has its window, the second one part, then every other one.
    assert list(dealt.parts.values()) == [9, 1, 1, 1, 1, 1, 1, 1]
    for _ in range(40):
        for number in range(8):
            to = Sender(f"client-{number}", bytes([number]))
            dealt.flow.more(to, str(number), 0, SIZE)
        dealt.flow.resume(lambda _: True)
    assert list(dealt.parts.values()) == [20] * 8


def test_sessions_that_are_over_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dealt = _Dealt()
    for session in ("a", "b", "c"):
        dealt.deal(SLOW, 5, SIZE, session=session)
    dealt.flow.forget("a")
    dealt.flow.resume(lambda session: session != "b")
    assert len(dealt.flow) == 1
    monkeypatch.setattr(flow_module, "STALE_SECONDS", -1.0)
    dealt.flow.resume(lambda _: True)
    assert len(dealt.flow) == 0
    assert "client-1 took no more of query 0 of session c" in caplog.text
    dealt.flow.more(SLOW, "c", 0, SIZE)
    assert dealt.computed == 3


def test_what_goes_wrong_ends_its_query_alone() -> None:
    dealt = _Dealt()

    def broken() -> Iterator[torch.Tensor]:
        yield PART
        raise ValueError("no masks")

    dealt.flow.begin(SLOW, "a", 0, broken(), size=5 * SIZE, window=MOST_WINDOW)
    assert [str(error) for error in dealt.errors] == ["no masks"]
    assert len(dealt.flow) == 0
    dealt.deal(OTHER, 2, MOST_WINDOW)
    assert dealt.parts == {"client-1": 1, "client-2": 2}


def test_a_slow_receiver_gets_all_parts_of_a_deep_query(tmp_path: Path) -> None:
    """More parts than the sockets of both ends hold, which were dropped without a word."""
    plan = tuple(SquarePair((PART_ELEMENTS,)) for _ in range(2 * HIGH_WATER + 10))
    session = "ab" * 16
    with world(tmp_path, epochs=0, stay=True) as here, contextlib.ExitStack() as stack:
        links = {}
        for rank, name in enumerate(("server", "client-1")):
            wire = stack.enter_context(Wire(here.keys[name]))
            address, key = here.dealer.address, here.peers["dealer"]
            link: Link[DealerBody] = Link(wire, address, peer="dealer", peer_key=key, codec=dealer_codec, timeout=30)
            stack.callback(link.close)
            links[name] = link
            join_session(link, session, rank, "client-1", plan)
        parts = corrections(links["server"], session, plan, 0, rank=0)
        assert len(next(parts)) == PART_ELEMENTS
        time.sleep(0.5)
        assert sum(1 for _ in parts) == len(plan) - 1
        held = here.dealer._hub._waiting
        assert not held
        links["server"].request(LeaveSession(session))
