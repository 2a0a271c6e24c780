import threading
from typing import Any

import pytest

from splitsec.errors import MessageError, RandomnessError
from splitsec.mpc.beaver import SquarePair
from splitsec.mpc.session.plan import query_bytes
from splitsec.mpc.session.prefetch import MEMORY_BYTES, MOST_AHEAD, Supply, most_ahead


class _Session:
    """Stands for a session: counts, and fails where it is told to."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.next_query = self.fetched = 0
        self.threads: set[int] = set()
        self.fails = fails

    def prepare(self) -> int:
        if self.fails is not None:
            raise self.fails
        self.threads.add(threading.get_ident())
        self.next_query += 1
        return self.next_query - 1


def _supply(session: Any) -> Supply:
    return Supply(session)


def test_it_prepares_what_was_asked_for_and_no_more() -> None:
    session = _Session()
    supply = _supply(session)
    supply.want(3)
    assert supply.wait(2, timeout=60) >= 0
    assert supply.wait(2, timeout=60) >= 0
    supply.want(1)
    supply.close()
    assert session.next_query == 3
    assert session.threads != {threading.get_ident()}


def test_nobody_waits_for_what_was_not_asked_for() -> None:
    supply = _supply(_Session())
    with pytest.raises(RandomnessError, match="query 0 was never asked for"):
        supply.wait(0, timeout=60)
    supply.close()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MessageError("the dealer is gone"), MessageError, "the dealer is gone"),
        (KeyError(1), RandomnessError, "KeyError"),
    ],
)
def test_what_goes_wrong_reaches_whoever_waits(error: Exception, kind: type[Exception], words: str) -> None:
    supply = _supply(_Session(error))
    supply.want(1)
    for _ in range(2):
        with pytest.raises(kind, match=words):
            supply.wait(0, timeout=60)
    supply.close()


def test_memory_bounds_how_far_ahead() -> None:
    small, large = (SquarePair((1000,)),), (SquarePair((1 << 27,)),)
    assert query_bytes(small, 0) == 2 * 8000
    assert most_ahead(small, 0) == MOST_AHEAD
    assert query_bytes(large, 0) > MEMORY_BYTES
    assert most_ahead(large, 0) == 1
    medium = (SquarePair((MEMORY_BYTES // 16 // 5,)),)
    assert most_ahead(medium, 1) == 5
