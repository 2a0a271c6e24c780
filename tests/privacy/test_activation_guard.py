import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from splitsec.errors import RangeError
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.privacy import activation_guard as activations
from splitsec.privacy.activation_guard import (
    Guard,
    activation_step,
    clip_rows,
    distance_correlation,
    epsilon_of_activations,
    guarded,
)


def test_rows_are_clipped_and_others_left_alone() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = clip_rows(rows, 1.0)
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert clip_rows(torch.randn(4, 2, 3, 3) * 9, 1.0).flatten(1).norm(dim=1).max() <= 1 + 1e-6


def test_the_guard_adds_noise_in_training_alone() -> None:
    front = nn.Linear(3, 400)
    inputs = torch.randn(50, 3)
    guard = Guard(front, clip=2.0, noise=0.5)
    front.eval()
    assert torch.equal(front(inputs), front(inputs))
    assert front(inputs).norm(dim=1).max() <= 2 + 1e-5
    quiet = front(inputs)
    front.train()
    noise = (front(inputs) - quiet).detach().double().numpy().ravel()
    assert stats.kstest(noise / 1.0, "norm").pvalue > 1e-6
    guard.remove()
    assert front(inputs * 100).norm(dim=1).max() > 2


def _lowest_bit(values: torch.Tensor) -> NDArray[np.float64]:
    """The exponent of the last digit of each value in base 2."""
    fraction, exponent = np.frexp(values.detach().double().numpy())
    digits = (fraction * 2.0**53).astype(np.int64)
    return np.log2(np.maximum(digits & -digits, 1).astype(np.float64)) + exponent - 53


def _best_guess(sent: torch.Tensor, zero: torch.Tensor) -> float:
    """What share of the values that a precision-based attack takes for exact zeros are some, for the best of its
    thresholds: S. Haney et al., "Precision-based attacks and interval refining", 2022, section 3."""
    lowest, truly = _lowest_bit(sent), zero.numpy()
    flagged = [lowest < limit for limit in range(-40, 0)]
    return max(float(truly[one].mean()) for one in flagged if one.sum() >= 100)


@pytest.mark.parametrize("noise", [0.2, 1.0, 0.003])
def test_no_digit_tells_which_activations_were_zero(noise: float) -> None:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Linear(64, 256), nn.ReLU())
    inputs = torch.randn(500, 64)
    clean = clip_rows(front(inputs), 5.0).detach()
    zero = clean == 0
    base = zero.double().mean().item()
    guard = Guard(front, clip=5.0, noise=noise)
    sent = front.train()(inputs).detach()
    guard.remove()
    assert _best_guess(sent, zero) < base + 0.05
    # The control: noise in floating point, where a zero lets the noise's own digits through.
    assert _best_guess(clean + torch.randn_like(clean) * noise * 5, zero) > 0.95


@pytest.mark.parametrize("noise", [100.0, 1.0, 0.01, 1e-5])
def test_what_is_sent_is_exact_and_no_row_is_longer_than_the_clip(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(fresh_seed())
    rows = torch.randn(300, 3, 5) * 9
    step = activation_step(clip=0.7, noise=noise)
    sent = guarded(rows, clip=0.7, noise=noise, stream=stream)
    assert sent.dtype == torch.float32
    units = sent.double() / step
    assert torch.equal(units, units.round())
    assert units.abs().max() < 2**24
    monkeypatch.setattr(
        activations, "discrete_gaussian", lambda _stream, count, _std: torch.zeros(count, dtype=torch.int64)
    )
    quiet = guarded(rows, clip=0.7, noise=noise, stream=stream).double().flatten(1)
    assert quiet.norm(dim=1).max() <= 0.7


def test_the_gradient_is_that_of_the_clip() -> None:
    rows = torch.randn(20, 6, requires_grad=True)
    weights = torch.randn(20, 6)
    found = [
        torch.autograd.grad((one * weights).sum(), rows)[0]
        for one in (clip_rows(rows, 1.0), guarded(rows, clip=1.0, noise=0.3, stream=Stream(fresh_seed())))
    ]
    assert torch.equal(found[0], found[1])


def test_activations_that_are_not_finite_are_named() -> None:
    with pytest.raises(RangeError, match="nan"):
        guarded(torch.tensor([[float("nan")]]), clip=1.0, noise=0.3, stream=Stream(fresh_seed()))


def test_what_noise_on_activations_promises() -> None:
    # A row that is replaced moves by up to twice its clip.
    assert epsilon_of_activations(noise=20.0, delta=1e-5) < 1 < epsilon_of_activations(noise=4.0, delta=1e-5)
    assert epsilon_of_activations(noise=20.0, delta=1e-5, releases=30) > epsilon_of_activations(noise=20.0, delta=1e-5)
    assert epsilon_of_activations(noise=0.0, delta=1e-5) == math.inf


def test_distance_correlation() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 5, generator=generator)
    turned = rows @ torch.linalg.qr(torch.randn(5, 5, generator=generator))[0] * 3 + 1
    assert float(distance_correlation(rows, turned)) == pytest.approx(1.0, abs=1e-5)
    apart = torch.randn(300, 5, generator=generator)
    assert float(distance_correlation(rows, apart)) < 0.35
    assert float(distance_correlation(rows, torch.ones(300, 2))) < 1e-3


def test_its_gradient_lowers_it() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 6, generator=generator)
    layer = nn.Linear(6, 6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    begun = distance_correlation(rows, layer(rows)).item()
    for _ in range(60):
        optimizer.zero_grad()
        distance_correlation(rows, layer(rows)).backward()
        optimizer.step()
    assert distance_correlation(rows, layer(rows)).item() < begun - 0.1
