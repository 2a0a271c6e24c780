"""Measures of images, of scores, and of what is linear in activations."""

from __future__ import annotations

import pytest
import torch
from support.attacked import split_at

from splitsec.privacy.audit.metrics import auc, mse, ridge_error, ssim, true_positives_at


def test_measures_of_images(digits: torch.Tensor) -> None:
    images = digits[:40]
    assert ssim(images, images) == pytest.approx(1.0, abs=1e-5)
    assert mse(images, images) == 0
    noisy = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert ssim(images, noisy) < 0.9
    assert ssim(images, images.flip(-1)) < ssim(images, noisy)
    large = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(large, large * 0.99) > 0.99


def test_measures_of_scores() -> None:
    truth = torch.tensor([True] * 50 + [False] * 50)
    assert auc(truth.double(), truth) == 1
    assert auc(torch.zeros(100), truth) == 0.5
    assert true_positives_at(truth.double(), truth, 0.01) == 1
    assert true_positives_at(-truth.double(), truth, 0.01) == 0


def test_images_are_linear_in_a_shallow_activation_and_not_in_noise(digits: torch.Tensor) -> None:
    images = digits[700:1100]
    with torch.no_grad():
        seen = split_at("conv1").front(images)
    assert ridge_error(seen.flatten(1), images) < 0.05
    assert ridge_error(torch.randn(400, 20, generator=torch.Generator().manual_seed(0)), images) > 0.9
