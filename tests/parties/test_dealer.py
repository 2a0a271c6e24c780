"""What the dealer's book of runs and owners does with names that somebody makes up."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.parties_in_threads import world

from splitsec.errors import MessageError, RandomnessError
from splitsec.mpc.dealer import MAX_OWNERS, OwnerBook
from splitsec.parties.dealer import MAX_RUNS
from splitsec.parties.messages import DealerBody, dealer_codec
from splitsec.training.messages import BeginRun, JoinRun, RunSeed
from splitsec.transport import Link, Wire

RUN = "ab" * 16


def test_made_up_runs_take_no_place_and_evict_nothing(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:

        def link(wire: Wire) -> Link[DealerBody]:
            address, key = here.dealer.address, here.peers["dealer"]
            return Link(wire, address, peer="dealer", peer_key=key, codec=dealer_codec, timeout=20)

        with Wire(here.keys["server"]) as own, Wire(here.keys["client-1"]) as first, Wire(here.keys["client-2"]) as two:
            server, noisy, honest = link(own), link(first), link(two)
            server.request(BeginRun(RUN, "start", fresh=True))
            for number in range(2 * MAX_RUNS):
                with pytest.raises(RandomnessError, match="the server has not begun run"):
                    noisy.request(JoinRun(f"{number:032x}", "start"))
                with pytest.raises(RandomnessError, match="may not begin a run"):
                    noisy.request(BeginRun(f"{number:032x}", "start", fresh=True))
            assert isinstance(honest.request(JoinRun(RUN, "start"))[0], RunSeed)
            # The control: as many runs that the server begins do take its place.
            for number in range(MAX_RUNS):
                server.request(BeginRun(f"{number:032x}", "start", fresh=True))
            with pytest.raises(RandomnessError, match="the server has not begun run"):
                honest.request(JoinRun(RUN, "start"))
            for one in (server, noisy, honest):
                one.close()


def test_an_owner_makes_room_for_itself_alone() -> None:
    book = OwnerBook()
    kept, seed = book.new("client-1")
    own = [book.new("client-2")[0] for _ in range(3 * MAX_OWNERS)]
    assert book.seed(kept) == seed
    assert book.seed(own[-1]) != seed
    with pytest.raises(RandomnessError, match="no seed for these weights"):
        book.seed(own[0])


def test_a_huge_batch_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with (
        world(tmp_path, epochs=0, stay=True) as here,
        here.client("client-1", timeout=20) as client,
        pytest.raises(MessageError, match="1000000x3x3 has more than .* elements; ask for smaller batches"),
        client.session((1_000_000, 3, 3)),
    ):
        raise AssertionError("it was opened")
