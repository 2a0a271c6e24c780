"""A client's seeds: asked for with its partners, and replaced only where the dealer has lost them."""

from __future__ import annotations

import pytest

from splitsec.errors import MessageError
from splitsec.party_names import DEALER
from splitsec.training.client.seeds import ClientSeeds
from splitsec.training.messages import JoinRun, RunSeed

RUN = "0" * 32


def _seeds() -> ClientSeeds:
    return ClientSeeds(RUN, "1" * 32, partners=["b", "c"], noise=None)


def test_the_request_names_the_run_and_the_partners() -> None:
    request = _seeds().request(3)
    assert request.to == DEALER
    assert isinstance(request.body, JoinRun)
    assert (request.body.run, request.body.round, request.body.partners) == (RUN, 3, ("b", "c"))


def test_no_two_requests_are_the_same() -> None:
    """A request is told from another by a fresh number: the control is that all else is the same."""
    seeds = _seeds()
    assert seeds.request(0).body != seeds.request(0).body


def test_each_partner_has_a_seed_of_its_own() -> None:
    seeds = _seeds()
    assert seeds.take(RunSeed(b"a" * 16, (b"b" * 16, b"c" * 16))) is None
    assert seeds.current.own == b"a" * 16
    assert (seeds.shared_with("b"), seeds.shared_with("c")) == (b"b" * 16, b"c" * 16)
    with pytest.raises(MessageError, match="eve takes no part in this run"):
        seeds.shared_with("eve")


def test_other_seeds_than_were_asked_for_are_refused() -> None:
    with pytest.raises(MessageError, match="other seeds than were asked for"):
        _seeds().take(RunSeed(b"a" * 16, (b"b" * 16,)))


def test_seeds_are_replaced_only_after_a_renewal() -> None:
    seeds = _seeds()
    pairs = (b"b" * 16, b"c" * 16)
    seeds.renew("2" * 32, 0)
    # A dealer that was started again before the first answer: there is nothing to replace.
    assert seeds.take(RunSeed(b"1" * 16, pairs)) is None
    seeds.renew("3" * 32, 1)
    before = seeds.take(RunSeed(b"2" * 16, pairs))
    assert before is not None
    assert (before.own, seeds.current.own, seeds.start) == (b"1" * 16, b"2" * 16, "3" * 32)
