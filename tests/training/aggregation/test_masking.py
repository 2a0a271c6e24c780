import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from splitsec.errors import MessageError, RangeError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.training.aggregation import masking
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.aggregation.masking import combine, hand_over, mask_upload, take_over
from splitsec.training.flat_state import Combinable


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
        monkeypatch.setattr(masking, "Stream", Zero)
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 5000.0])
def test_parameters_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(RangeError, match="a parameter of the front"):
        mask_upload(torch.tensor([0.0, bad], dtype=torch.float64), weight=1, seed=fresh_seed(), round_number=0)


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


def test_weights_beyond_the_range_are_refused() -> None:
    with pytest.raises(MessageError, match="weight"):
        mask_upload(torch.zeros(1, dtype=torch.float64), weight=0, seed=fresh_seed(), round_number=0)
    with pytest.raises(MessageError, match="weights add up"):
        combine([torch.zeros(1, dtype=torch.int64)], torch.zeros(1, dtype=torch.int64), total_weight=1 << 27)
