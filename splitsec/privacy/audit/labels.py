"""What gradients say about labels that stay with the client: a U, where the server sees the gradient of its output.

O. Li, J. Sun, X. Yang, W. Gao, H. Zhang, J. Xie, V. Smith, C. Wang, "Label leakage and protection in two-party split
learning", ICLR 2022, section 3: gradients of one class point one way. With more classes than two the attacker needs one
row of each whose label it knows.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.privacy.audit.metrics import auc


def gradients_at(head: nn.Module, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of each row's own loss by the tail's output, flat: (N, features)."""
    taken = outputs.detach().clone().requires_grad_()
    F.cross_entropy(head(taken), labels, reduction="sum").backward(inputs=[taken])
    assert taken.grad is not None
    return taken.grad.flatten(1)


def infer_labels(
    seen: torch.Tensor, labels: torch.Tensor, *, known: int = 1, seed: int = 0
) -> tuple[float, float, float]:
    """Guess labels by the direction of what is seen, from a few known rows of each class.

    Args:
        seen: gradients, or anything else that the server has of each row: (N, features).
        known: rows of each class whose label the attacker knows; they do not count in the result.

    Returns:
        Mean over the classes of the area under the ROC curve of each against the rest; the share of right labels; and
        the share of the most frequent label, which is what guessing gives.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = [one for one in labels.unique().tolist() if int((labels == one).sum()) > known]
    anchors = {one: [int(row) for row in order if int(labels[row]) == one][:known] for one in classes}
    used = {row for rows in anchors.values() for row in rows}
    rest = torch.tensor([row for row in range(len(labels)) if row not in used])
    directions = F.normalize(seen.double(), dim=1)
    scores = torch.stack([directions @ directions[rows].mean(0) for rows in anchors.values()], dim=1)[rest]
    truth = labels[rest]
    areas = [auc(scores[:, at], truth == one) for at, one in enumerate(classes)]
    right = torch.tensor(classes)[scores.argmax(1)] == truth
    most = float(torch.bincount(truth).max() / len(truth))
    return sum(areas) / len(areas), float(right.double().mean()), most
