"""How alike images are, how well scores tell two groups apart, and how much of images is linear in activations."""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def mse(images: torch.Tensor, guesses: torch.Tensor) -> float:
    """Return the mean squared difference of all values."""
    return float(((images - guesses) ** 2).mean())


def ssim(images: torch.Tensor, guesses: torch.Tensor, *, window: int = 7) -> float:
    """Return the mean structural similarity, from -1 to 1 (equal).

    Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment", IEEE Transactions on Image Processing 2004,
    section III, with uniform windows.

    Args:
        images: (N, channels, height, width); their range is that of the values.
        window: its side, at most that of the images.
    """
    side = min(window, *images.shape[-2:])
    span = float(images.max() - images.min())
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_x, mean_y = functional.avg_pool2d(images, side, 1), functional.avg_pool2d(guesses, side, 1)
    # Unbiased, as scikit-image has them.
    unbias = side**2 / (side**2 - 1)
    var_x = (functional.avg_pool2d(images**2, side, 1) - mean_x**2) * unbias
    var_y = (functional.avg_pool2d(guesses**2, side, 1) - mean_y**2) * unbias
    both = (functional.avg_pool2d(images * guesses, side, 1) - mean_x * mean_y) * unbias
    shared = (2 * mean_x * mean_y + first) * (2 * both + second)
    return float((shared / ((mean_x**2 + mean_y**2 + first) * (var_x + var_y + second))).mean())


def auc(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the chance that a positive scores above a negative, ties counting half.

    Args:
        truth: bool, of the scores' shape, with both kinds.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth.numpy(), scores.double().numpy()))


def true_positives_at(scores: torch.Tensor, truth: torch.Tensor, false_positives: float) -> float:
    """Return the fraction of positives above the threshold that this fraction of the negatives passes."""
    threshold = torch.quantile(scores[~truth].double(), 1 - false_positives)
    return float((scores[truth].double() > threshold).double().mean())


def ridge_error(seen: torch.Tensor, images: torch.Tensor, *, fitted: float = 0.6) -> float:
    """Return the fraction of the images' variance that the best linear reconstruction leaves: 0 if all is known.

    A quick measure: ridge regression with the kernel of the activations, the penalty chosen among a few on rows that
    take no part in the result (A. Hoerl and R. Kennard, "Ridge regression", Technometrics 1970).

    Args:
        seen: what the server would see of the images, (N, ...).
        fitted: the fraction of rows that are fitted.
    """
    count = len(seen)
    fit, check = int(count * fitted), int(count * (fitted + (1 - fitted) / 2))
    x, y = seen.flatten(1).double(), images.flatten(1).double()
    mean_x, mean_y = x[:fit].mean(0), y[:fit].mean(0)
    x, y = x - mean_x, y - mean_y
    kernel = x[:fit] @ x[:fit].T
    values, vectors = torch.linalg.eigh(kernel)
    rotated = vectors.T @ y[:fit]
    across = x[fit:] @ x[:fit].T @ vectors
    least, left = math.inf, 1.0
    for penalty in torch.logspace(-6, 1, 8).double() * values.max().clamp(min=1e-12):
        guess = across @ (rotated / (values.clamp(min=0) + penalty)[:, None])
        errors = ((guess - y[fit:]) ** 2).sum(1)
        error = float(errors[: check - fit].mean())
        if error < least:
            least = error
            left = float(errors[check - fit :].mean() / (y[check:] ** 2).sum(1).mean().clamp(min=1e-12))
    return left
