import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from splitsec.errors import MessageError, RandomnessError, RangeError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.training import aggregation
from splitsec.training.aggregation import MaskBook, combine, hand_over, mask_upload, take_over
from splitsec.training.combinable import Combinable


def _book(minimum: int = 2) -> MaskBook:
    book = MaskBook(minimum)
    book.begin()
    return book


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 60_000), min_size=2, max_size=40),
    st.integers(0, 5),
    st.floats(-4095, 4095),
    st.integers(0, 2**32),
)
def test_the_average_is_the_plain_one(weights: list[int], round_number: int, scale: float, seed: int) -> None:
    total = sum(weights)
    names = [f"client-{index}" for index in range(len(weights))]
    book = _book()
    values = (torch.rand(len(weights), 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)) * scale
    uploads = [
        mask_upload(row, weight=weight, seed=book.seeds_for(name), round_number=round_number)
        for name, row, weight in zip(names, values, weights, strict=True)
    ]
    masks = book.open_sum(round_number, names, 7)
    expected = (values * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0) / total
    got = combine(uploads, masks, total_weight=total)
    assert (got - expected).abs().max().item() <= 2**-16


def _uploads(count: int, *, masked: bool, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    class Zero(Stream):
        def ring(self, shape):  # type: ignore[no-untyped-def]
            return torch.zeros(tuple(shape), dtype=torch.int64)

    if not masked:
        monkeypatch.setattr(aggregation, "Stream", Zero)
    front = Combinable([nn.Linear(40, 25)]).flat()
    return torch.stack([mask_upload(front, weight=480, seed=fresh_seed(), round_number=0) for _ in range(count)])


def _uniform(uploads: torch.Tensor) -> bool:
    counts = torch.bincount(uploads.view(torch.uint8).flatten().long(), minlength=256).numpy()
    return bool(stats.chisquare(counts).pvalue > 1e-6)


def test_each_single_upload_looks_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    for upload in _uploads(20, masked=True, monkeypatch=monkeypatch):
        assert _uniform(upload)


def test_control_without_masks_an_upload_does_not_look_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(_uniform(upload) for upload in _uploads(5, masked=False, monkeypatch=monkeypatch))


def test_masks_of_different_rounds_and_clients_differ() -> None:
    front, seed = torch.zeros(50, dtype=torch.float64), fresh_seed()
    uploads = [mask_upload(front, weight=1, seed=seed, round_number=number) for number in range(3)]
    uploads.append(mask_upload(front, weight=1, seed=fresh_seed(), round_number=0))
    for one in range(4):
        for other in range(one):
            assert not (uploads[one] == uploads[other]).any()


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 5000.0])
def test_parameters_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(RangeError, match="a parameter of the front"):
        mask_upload(torch.tensor([0.0, bad], dtype=torch.float64), weight=1, seed=fresh_seed(), round_number=0)


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


def test_a_thousand_clients() -> None:
    seed = torch.seed() % 2**31
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    book, count = _book(1000), 1000
    values = (torch.rand(count, 20, generator=generator, dtype=torch.float64) - 0.5) * 8191
    weights = torch.randint(1, 60_000, (count,), generator=generator)
    uploads = [
        mask_upload(row, weight=int(weight), seed=book.seeds_for(str(index)), round_number=0)
        for index, (row, weight) in enumerate(zip(values, weights, strict=True))
    ]
    got = combine(uploads, book.open_sum(0, [str(one) for one in range(count)], 20), total_weight=int(weights.sum()))
    expected = (values * weights[:, None]).sum(0) / weights.sum()
    assert (got - expected).abs().max().item() <= 2**-16


def test_what_is_handed_over_comes_back_to_the_bit() -> None:
    flat, seed = torch.randn(5000, dtype=torch.float64), fresh_seed()
    handed = hand_over(flat, seed=seed, sender="a", receiver="b", number=3)
    assert _uniform(handed)
    assert not _uniform(flat.view(torch.int64))
    assert torch.equal(take_over(handed, seed=seed, sender="a", receiver="b", number=3), flat)
    # The way back has pads of its own.
    assert not torch.equal(hand_over(flat, seed=seed, sender="b", receiver="a", number=3), handed)


def test_a_pair_of_clients_shares_what_no_third_one_has() -> None:
    book = _book()
    ab, ac = book.pair_seeds("a", ["b", "c"])
    assert (book.pair_seeds("b", ["a"]), book.pair_seeds("c", ["a"])) == ((ab,), (ac,))
    assert len({ab, ac, *book.pair_seeds("b", ["c"])}) == 3
    with pytest.raises(RandomnessError, match="no seed with itself"):
        book.pair_seeds("a", ["a"])
    book.begin("again")
    assert book.pair_seeds("a", ["b"]) != (ab,)


def test_weights_beyond_the_range_are_refused() -> None:
    with pytest.raises(MessageError, match="weight"):
        mask_upload(torch.zeros(1, dtype=torch.float64), weight=0, seed=fresh_seed(), round_number=0)
    with pytest.raises(MessageError, match="weights add up"):
        combine([torch.zeros(1, dtype=torch.int64)], torch.zeros(1, dtype=torch.int64), total_weight=1 << 27)


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
