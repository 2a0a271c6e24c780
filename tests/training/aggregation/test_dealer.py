"""The dealer's half of aggregation: who gets a seed, and which sums of masks open."""

from __future__ import annotations

import pytest
import torch

from splitsec.errors import RandomnessError
from splitsec.mpc.prg import Stream
from splitsec.mpc.session.messages import Done
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.messages import BeginRun, JoinRun, MaskSum, OpenMasks, RunSeed, Unseeded

RUN, START = "0" * 32, "1" * 32


def _book(minimum: int = 2) -> MaskBook:
    book = MaskBook(minimum)
    book.begin()
    return book


def test_the_dealer_opens_no_single_mask() -> None:
    book = _book()
    for name in ("a", "b", "c"):
        book.seeds_for(name)
    for participants in ([], ["a"], ["a", "a"]):
        with pytest.raises(RandomnessError, match="not opened"):
            book.open_sum(0, participants, 3)
    with pytest.raises(RandomnessError, match="z takes no part"):
        book.open_sum(0, ["a", "z"], 3)
    book.open_sum(0, ["a", "b"], 3)
    # A second sum over another set would give the difference away.
    with pytest.raises(RandomnessError, match="opens once"):
        book.open_sum(0, ["a", "b", "c"], 3)
    with pytest.raises(RandomnessError, match="has had its seed"):
        book.seeds_for("a")
    with pytest.raises(RandomnessError, match="fewer than 2"):
        MaskBook(1)


def test_a_round_repeated_after_a_restart_opens_for_the_same_clients_only() -> None:
    book = MaskBook()
    for start in ("one", "two", "three"):
        book.begin(start, fresh=start == "one")
        for name in ("a", "b", "c"):
            book.seeds_for(name, start=start)
        if start == "one":
            first = book.open_sum(0, ["a", "b", "c"], 3, start=start)
            continue
        with pytest.raises(RandomnessError, match="not the last start"):
            book.open_sum(0, ["a", "b", "c"], 3, start="one")
        # Else the difference of the two sums would be one client's parameters, if it trains alike.
        with pytest.raises(RandomnessError, match="round 0 was opened for a, b, c"):
            book.open_sum(0, ["a", "b"], 3, start=start)
        assert not torch.equal(book.open_sum(0, ["c", "b", "a"], 3, start=start), first)
    with pytest.raises(RandomnessError, match="started again since"):
        book.seeds_for("a", start="one", first_round=5)
    # Without a record it could be that a sum over other clients was opened before.
    with pytest.raises(RandomnessError, match="no record of the run's earlier rounds"):
        MaskBook().begin("four", fresh=False)
    MaskBook(opened=book.opened, recorded=True).begin("four", fresh=False)
    with pytest.raises(RandomnessError, match="has had this start"):
        book.begin("two")
    # A later round that was never opened is anybody's.
    book.open_sum(1, ["a", "b"], 3, start="three")


def test_who_comes_back_has_a_new_seed_from_then_on() -> None:
    book = _book()
    first = {name: book.seeds_for(name) for name in ("a", "b")}
    again = book.seeds_for("a", first_round=2)
    for number, seed in ((0, first["a"]), (1, first["a"]), (2, again), (3, again)):
        expected = sum(Stream(one, number).ring((4,)) for one in (seed, first["b"]))
        assert torch.equal(book.open_sum(number, ["a", "b"], 4), expected)
    # Started twice before its round began: the later seed counts.
    book.seeds_for("a", first_round=4)
    twice = book.seeds_for("a", first_round=4)
    expected = Stream(twice, 4).ring((4,)) + Stream(first["b"], 4).ring((4,))
    assert torch.equal(book.open_sum(4, ["a", "b"], 4), expected)
    with pytest.raises(RandomnessError, match="has had its seed"):
        book.seeds_for("a", first_round=4)
    book.seeds_for("c", first_round=6)
    with pytest.raises(RandomnessError, match="takes no part in round 5"):
        book.open_sum(5, ["a", "c"], 4)


def test_a_pair_of_clients_shares_what_no_third_one_has() -> None:
    book = _book()
    ab, ac = book.pair_seeds("a", ["b", "c"])
    assert (book.pair_seeds("b", ["a"]), book.pair_seeds("c", ["a"])) == ((ab,), (ac,))
    assert len({ab, ac, *book.pair_seeds("b", ["c"])}) == 3
    with pytest.raises(RandomnessError, match="no seed with itself"):
        book.pair_seeds("a", ["a"])
    book.begin("again")
    assert book.pair_seeds("a", ["b"]) != (ab,)


def test_a_request_that_is_sent_again_gets_the_same_seed_and_a_new_one_none() -> None:
    book = _book()
    seed = book.seeds_for("a", once=b"one")
    assert book.seeds_for("a", once=b"one") == seed
    # The control: of a client that was started again, whose upload may be another.
    with pytest.raises(RandomnessError, match="has had its seed"):
        book.seeds_for("a", once=b"two")
    with pytest.raises(RandomnessError, match="has had its seed"):
        book.seeds_for("a")
    book.begin("again")
    assert book.seeds_for("a", start="again", once=b"one") != seed


def test_a_dealer_without_a_record_takes_the_servers_and_none_that_differs() -> None:
    book = MaskBook()
    book.begin("one", fresh=False, opened={0: ["a", "b", "c"]})
    for name in ("a", "b", "c"):
        book.seeds_for(name, start="one")
    # By the record, no second sum of the same round opens over others.
    with pytest.raises(RandomnessError, match="before the run was started again round 0 was opened for a, b, c"):
        book.open_sum(0, ["a", "b"], 4, start="one")
    with pytest.raises(RandomnessError, match="names other clients than this dealer's"):
        book.begin("two", fresh=False, opened={0: ["a", "b"]})
    # The control: without any record it does not go on.
    with pytest.raises(RandomnessError, match="no record"):
        MaskBook().begin("one", fresh=False)


def test_an_answer_that_was_lost_is_given_again_and_no_other() -> None:
    book = MaskBook()
    book.begin("one")
    seeds = {name: book.seeds_for(name, start="one") for name in ("a", "b", "c")}
    total = book.open_sum(0, ["a", "b"], 4, start="one")
    assert torch.equal(book.open_sum(0, ["a", "b"], 4, start="one"), total)
    assert torch.equal(total, sum(Stream(seeds[name], 0).ring((4,)) for name in ("a", "b")))
    with pytest.raises(RandomnessError, match="each round opens once"):
        book.open_sum(0, ["a", "b", "c"], 4, start="one")
    # A server that asks for the same start again is where it was.
    book.begin("one")
    assert torch.equal(book.open_sum(0, ["a", "b"], 4, start="one"), total)


def test_messages_about_a_run_are_answered() -> None:
    book = MaskBook()
    assert book.answer("server", BeginRun(RUN, START, True)) == (Done(), {})
    seeds = []
    for name in ("a", "b"):
        body, _ = book.answer(name, JoinRun(RUN, START, partners=("server", "b" if name == "a" else "a")))
        assert isinstance(body, RunSeed)
        seeds.append(body)
    # The pair's seed is common to both, and the server has none with anybody.
    assert seeds[0].pairs == seeds[1].pairs
    assert len(seeds[0].pairs) == 1
    body, tensors = book.answer("server", OpenMasks(RUN, START, 0, ("a", "b"), 3))
    assert body == MaskSum(0)
    assert torch.equal(tensors["mask_sum"], sum(Stream(seed.seed, 0).ring((3,)) for seed in seeds))
    assert book.answer("server", OpenMasks(RUN, START, 1, ("a", "c"), 3)) == (Unseeded(1, ("c",)), {})


@pytest.mark.parametrize(
    ("name", "body", "why"),
    [
        ("server", JoinRun(RUN, START), "the server gets no mask seed"),
        ("a", BeginRun(RUN, START, True), "a may not begin a run"),
        ("a", OpenMasks(RUN, START, 0, ("a", "b"), 3), "a may not open masks"),
        ("a", Done(), "the dealer does not answer Done"),
    ],
)
def test_a_party_gets_no_answer_to_what_others_may_ask(name: str, body: object, why: str) -> None:
    book = MaskBook()
    book.answer("server", BeginRun(RUN, START, True))
    with pytest.raises(RandomnessError, match=why):
        book.answer(name, body)  # type: ignore[arg-type]
