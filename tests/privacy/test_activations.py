import math

import pytest
import torch
from scipy import stats
from torch import nn

from splitsec.privacy.activations import Guard, clip_rows, distance_correlation, epsilon_of_activations


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
