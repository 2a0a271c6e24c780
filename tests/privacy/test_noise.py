"""Noise has the distribution that is accounted for, alone and as what is left of a sum when masks have cancelled."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from splitsec.errors import MessageError, RandomnessError, RangeError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.privacy import dp_updates as updates
from splitsec.privacy import noise
from splitsec.privacy.dp_updates import NoiseShares, check_shares, clip_update, noise_of_sum
from splitsec.privacy.noise import discrete_gaussian, grid_step, with_noise
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.aggregation.masking import FRACTION_BITS, combine, mask_update

NAMES = [f"client-{number}" for number in range(1, 6)]
LEAST = 1e-6


def _stream() -> Stream:
    seed = fresh_seed()
    print(f"seed {seed.hex()}")
    return Stream(seed)


def _normal(values: torch.Tensor, std: float) -> float:
    """The Kolmogorov-Smirnov test's p-value of a normal distribution with this standard deviation."""
    return float(stats.kstest(values.double().numpy().ravel() / std, "norm").pvalue)


@pytest.mark.parametrize("std", [2.5, 1e-6, 3e5])
def test_noise_on_a_grid_is_normal_and_on_it(std: float) -> None:
    values = torch.linspace(-3, 3, 60_000).view(300, 200) * std
    noisy = with_noise(values, std=std, moved=std, stream=_stream())
    assert noisy.dtype == torch.float64
    assert noisy.shape == (300, 200)
    assert _normal(noisy - values, std) > LEAST
    step = grid_step(std)
    assert std / 2**17 < step <= std / 2**16
    assert torch.equal(noisy / step, (noisy / step).round())
    # The control: the values themselves are not.
    assert not torch.equal(values.double() / step, (values.double() / step).round())


def test_control_the_test_sees_noise_that_is_a_twentieth_too_small() -> None:
    zeros = torch.zeros(60_000)
    assert _normal(with_noise(zeros, std=0.95, moved=1.0, stream=_stream()), 1.0) < LEAST


def test_what_rounding_adds_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def keep(stream: Stream, count: int, std: float) -> torch.Tensor:
        drawn.append(std)
        return torch.zeros(count, dtype=torch.int64)

    monkeypatch.setattr(noise, "discrete_gaussian", keep)
    step = grid_step(0.5)
    values = torch.rand(4096, dtype=torch.float64)
    # Neighbours, whose difference has the norm 0.1 and every value of which is rounded the other way.
    other = values + 0.1 / 64
    found = [with_noise(one, std=0.5, moved=0.1, stream=_stream()) for one in (values, other)]
    longer = float((found[1] - found[0]).norm())
    assert longer <= 0.1 + step * 64
    assert longer / (drawn[0] * step) <= 0.1 / 0.5


def test_values_that_no_grid_holds_are_refused() -> None:
    for value in (float("nan"), float("inf"), 2.0**60):
        with pytest.raises(RangeError, match="what noise is added to"):
            with_noise(torch.tensor([value]), std=1.0, moved=1.0, stream=_stream())


@pytest.mark.parametrize("std", [0.3, 1.0, 4.7])
def test_discrete_noise_has_the_exact_probabilities(std: float) -> None:
    count = 200_000
    drawn = discrete_gaussian(_stream(), count, std).numpy()
    most = math.ceil(5 * std)
    values = np.arange(-most, most + 1)
    weights = np.exp(-(values**2) / (2 * std**2))
    expected = weights / weights.sum() * count
    often = expected >= 5
    seen = np.array([(drawn == value).sum() for value in values])
    rest = count - seen[often].sum(), count - expected[often].sum()
    observed, wanted = [*seen[often], rest[0]], [*expected[often], max(rest[1], 1e-9)]
    if rest[1] < 5:
        observed, wanted = observed[:-1], np.array(wanted[:-1]) * sum(observed[:-1]) / sum(wanted[:-1])
    assert stats.chisquare(observed, wanted).pvalue > LEAST


def test_wide_discrete_noise_is_normal() -> None:
    std = 3.7 * 2**24
    drawn = discrete_gaussian(_stream(), 60_000, std)
    assert drawn.dtype == torch.int64
    assert _normal(drawn, std) > LEAST


def test_noise_that_cannot_be_drawn_is_refused() -> None:
    for std in (0.0, -1.0, float("nan"), 2.0**60):
        with pytest.raises(ValueError, match="standard deviation"):
            discrete_gaussian(_stream(), 3, std)


def _left(there: list[str], length: int, shares: NoiseShares, *, dealer_covers: bool = True) -> torch.Tensor:
    """What of a sum of uploads is left when the exact sum is taken off, in units of the ring."""
    book = MaskBook(2)
    book.begin()
    begun = torch.linspace(-2, 2, length, dtype=torch.float64)
    exact = torch.zeros(length, dtype=torch.float64)
    uploads = []
    for index, name in enumerate(NAMES):
        seed = book.seeds_for(name, noise=shares)
        update = clip_update(torch.full((length,), float(index + 1), dtype=torch.float64), 1.0)
        if name in there:
            uploads.append(mask_update(begun, update, noise=shares.share(length), seed=seed, round_number=0))
            rounded = [torch.round(part * (1 << FRACTION_BITS)) for part in (begun, update)]
            exact += rounded[0] + rounded[1]
    if not dealer_covers:
        book._noise = None
    masks = book.open_sum(0, there, length)
    return combine(uploads, masks, total_weight=1) * (1 << FRACTION_BITS) - exact


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_masks_cancel_and_the_sum_carries_the_noise_whoever_is_gone(gone: int) -> None:
    shares = NoiseShares(std=1e6, shares=len(NAMES))
    left = _left(NAMES[gone:], 40_000, shares)
    assert _normal(left, 1e6) > LEAST


def test_control_without_the_dealer_the_noise_of_who_is_gone_is_missing() -> None:
    shares = NoiseShares(std=1e6, shares=len(NAMES))
    left = _left(NAMES[1:], 40_000, shares, dealer_covers=False)
    assert _normal(left, 1e6) < LEAST
    assert _normal(left, 1e6 * math.sqrt(4 / 5)) > LEAST


def test_control_masks_that_do_not_cancel_show() -> None:
    shares = NoiseShares(std=1e6, shares=len(NAMES))
    book, other = MaskBook(2), MaskBook(2)
    for one in (book, other):
        one.begin()
    seeds = [book.seeds_for(name, noise=shares) for name in NAMES]
    for name in NAMES:
        other.seeds_for(name, noise=shares)
    zero = torch.zeros(1000, dtype=torch.float64)
    uploads = [mask_update(zero, zero, noise=shares.share(1000), seed=seed, round_number=0) for seed in seeds]
    left = combine(uploads, other.open_sum(0, NAMES, 1000), total_weight=1) * (1 << FRACTION_BITS)
    assert left.abs().median() > 1e15


def test_a_single_noisy_upload_is_uniform() -> None:
    zero = torch.zeros(8000, dtype=torch.float64)
    share = NoiseShares(1e6, 5).share(8000)
    upload = mask_update(zero, zero, noise=share, seed=fresh_seed(), round_number=0)
    counts = torch.bincount(upload.view(torch.uint8).long(), minlength=256).numpy()
    assert stats.chisquare(counts).pvalue > LEAST


def test_clients_must_agree_on_the_noise() -> None:
    book = MaskBook(2)
    book.begin()
    book.seeds_for("client-1", noise=NoiseShares(1e6, 5))
    with pytest.raises(RandomnessError, match="client-2 adds other noise"):
        book.seeds_for("client-2", noise=NoiseShares(1e5, 5))
    with pytest.raises(MessageError, match="out of range"):
        check_shares(NoiseShares(3.0, 5), 100)
    with pytest.raises(MessageError, match="shares"):
        check_shares(NoiseShares(1e6, 500), 100)


def test_updates_are_clipped_and_rounding_is_covered() -> None:
    long, short = torch.full((100,), 3.0).double(), torch.full((100,), 1e-3).double()
    assert float(clip_update(long, 0.5).norm()) == pytest.approx(0.5)
    assert torch.equal(clip_update(short, 0.5), short)
    assert torch.equal(clip_update(torch.zeros(3).double(), 0.5), torch.zeros(3).double())
    made = noise_of_sum(clip=2.0, noise=1.5, part=1.0, length=10_000, shares=3, bits=24)
    # Two vectors that are rounded to a grid of 2^-24 are at most 100 units farther apart.
    assert made.std == pytest.approx(3.0 * (2**24 + 100), rel=1e-9)


def test_secret_randomness_comes_from_the_one_generator() -> None:
    for module in (noise, updates):
        assert "random" not in vars(module)
