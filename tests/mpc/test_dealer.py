import pytest
import torch

from splitsec.errors import RandomnessError
from splitsec.mpc.beaver import SquarePair
from splitsec.mpc.correlation import Plan
from splitsec.mpc.dealer import DealerBook
from splitsec.mpc.protocols.sign import SignMask

PLAN = (SquarePair((4,)),)


def _join(book: DealerBook, rank: int, name: str, plan: Plan = PLAN, session: str = "s") -> bytes:
    return book.join(session, rank=rank, name=name, server="server", client="client-1", plan=plan)


def test_seeds_are_given_once_and_only_to_members() -> None:
    book = DealerBook()
    assert _join(book, 0, "server") != _join(book, 1, "client-1")
    with pytest.raises(RandomnessError, match="has had its seed"):
        _join(book, 1, "client-1")
    with pytest.raises(RandomnessError, match="not party 1"):
        _join(book, 1, "client-2", session="t")
    with pytest.raises(RandomnessError, match="not party 0"):
        _join(book, 0, "client-1", session="t")


def test_a_query_is_dealt_once_and_in_order() -> None:
    book = DealerBook()
    _join(book, 0, "server")
    with pytest.raises(RandomnessError, match="client-1 has not joined"):
        book.corrections("s", name="server", query=0)
    _join(book, 1, "client-1")
    first = book.corrections("s", name="server", query=0)
    with pytest.raises(RandomnessError, match="each once"):
        book.corrections("s", name="server", query=0)
    with pytest.raises(RandomnessError, match="each once"):
        book.corrections("s", name="server", query=5)
    assert not torch.equal(next(first), next(book.corrections("s", name="server", query=1)))
    with pytest.raises(RandomnessError, match="client-1 takes no corrections"):
        book.corrections("s", name="client-1", query=2)
    with pytest.raises(RandomnessError, match="client-2 has no session"):
        book.corrections("s", name="client-2", query=2)


def test_each_party_gets_what_both_share_once_and_in_order() -> None:
    book, plan = DealerBook(), (SignMask(70, 0, 9, "dcf"),)
    _join(book, 1, "client-1", plan)
    with pytest.raises(RandomnessError, match="server has not joined"):
        book.corrections("s", name="client-1", query=0)
    _join(book, 0, "server", plan)
    client = torch.cat(list(book.corrections("s", name="client-1", query=0)))
    server = torch.cat(list(book.corrections("s", name="server", query=0)))
    assert torch.equal(server[-len(client) :], client)
    assert len(server) == len(client) + 2 + 70
    with pytest.raises(RandomnessError, match="each once"):
        book.corrections("s", name="client-1", query=0)


def test_different_programs_are_refused() -> None:
    book = DealerBook()
    _join(book, 0, "server")
    with pytest.raises(RandomnessError, match="different computations"):
        _join(book, 1, "client-1", plan=(SquarePair((5,)),))


def test_leaving_ends_a_session_for_both() -> None:
    book = DealerBook()
    _join(book, 0, "server")
    book.leave("s", name="client-2")
    assert len(book) == 1
    book.leave("s", name="server")
    assert len(book) == 0
