"""Clipped updates, and noise in shares of which no client knows the whole."""

from __future__ import annotations

import math

import pytest
import torch

from splitsec.errors import MessageError
from splitsec.privacy.dp_updates import NoiseShares, ServerNoise, check_shares, clip_update, noise_of_sum
from splitsec.settings.privacy import GradientNoise


def test_an_update_is_shortened_and_never_lengthened() -> None:
    long, short = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.3, 0.4]).double()
    assert clip_update(long, 1.0).norm() == pytest.approx(1.0)
    assert torch.equal(clip_update(short, 1.0), short)
    assert torch.equal(clip_update(torch.zeros(2), 1.0), torch.zeros(2))


def test_all_shares_together_have_the_deviation_of_the_sum() -> None:
    noise = NoiseShares(1000.0, 4)
    whole = sum(noise.share(20_000).double() for _ in range(4))
    # Within ten standard errors of a deviation of 20,000 draws.
    assert abs(whole.std().item() / 1000.0 - 1) < 10 / math.sqrt(2 * 20_000)
    # The control: one share alone has half of it.
    assert noise.share(20_000).double().std() < 600


def test_the_dealer_adds_what_absent_clients_would_have() -> None:
    noise = NoiseShares(1000.0, 4)
    assert noise.missing(5, 4).abs().max() == 0
    deviation = noise.missing(20_000, 1).double().std().item()
    assert abs(deviation / (1000.0 * math.sqrt(3 / 4)) - 1) < 10 / math.sqrt(2 * 20_000)


@pytest.mark.parametrize(("std", "shares"), [(1000.0, 0), (1000.0, 9), (1.0, 4), (1e30, 4)])
def test_noise_that_would_not_be_what_was_promised_is_refused(std: float, shares: int) -> None:
    with pytest.raises(MessageError):
        check_shares(NoiseShares(std, shares), 8)
    check_shares(NoiseShares(1000.0, 4), 8)


def test_rounding_is_counted_in_the_noise_of_a_sum() -> None:
    options = {"clip": 1.0, "noise": 2.0, "part": 0.5, "shares": 3}
    exact = 2.0 * (1 << 20)
    few, many = (noise_of_sum(length=length, bits=20, **options).std for length in (1, 10_000))  # type: ignore[arg-type]
    assert exact < few < many


def test_noise_of_the_server_is_fresh() -> None:
    noise = ServerNoise(GradientNoise(1.0, 0.5))
    assert not torch.equal(noise.add(torch.zeros(8)), noise.add(torch.zeros(8)))
