"""How alike images are, and how well scores tell two groups apart."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def mse(images: torch.Tensor, guesses: torch.Tensor) -> float:
    """Mean squared difference of all values."""
    return float(((images - guesses) ** 2).mean())


def ssim(images: torch.Tensor, guesses: torch.Tensor, *, window: int = 7) -> float:
    """Mean structural similarity, from -1 to 1 (equal).

    Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment", IEEE Transactions on Image Processing 2004,
    section III, with uniform windows.

    Args:
        images: (N, channels, height, width); their range is that of the values.
        window: its side, at most that of the images.
    """
    side = min(window, *images.shape[-2:])
    span = float(images.max() - images.min())
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
    mean_x, mean_y = F.avg_pool2d(images, side, 1), F.avg_pool2d(guesses, side, 1)
    # Unbiased, as scikit-image has them.
    unbias = side**2 / (side**2 - 1)
    var_x = (F.avg_pool2d(images**2, side, 1) - mean_x**2) * unbias
    var_y = (F.avg_pool2d(guesses**2, side, 1) - mean_y**2) * unbias
    both = (F.avg_pool2d(images * guesses, side, 1) - mean_x * mean_y) * unbias
    found = (2 * mean_x * mean_y + first) * (2 * both + second)
    return float((found / ((mean_x**2 + mean_y**2 + first) * (var_x + var_y + second))).mean())


def auc(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """The chance that a positive scores above a negative, ties counting half.

    Args:
        truth: bool, of the scores' shape, with both kinds.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth.numpy(), scores.double().numpy()))


def true_positives_at(scores: torch.Tensor, truth: torch.Tensor, false_positives: float) -> float:
    """The share of positives above the threshold that so many of the negatives pass."""
    least = torch.quantile(scores[~truth].double(), 1 - false_positives)
    return float((scores[truth].double() > least).double().mean())
