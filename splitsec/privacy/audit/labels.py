"""Labels from gradients: in a U labels stay with the client, and the server sees the gradient of its output.

O. Li, J. Sun, X. Yang, W. Gao, H. Zhang, J. Xie, V. Smith, C. Wang, "Label leakage and protection in two-party split
learning", ICLR 2022, section 3: gradients of one class point one way. With more classes than two the attacker needs one
row of each whose label it knows.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from splitsec.privacy.audit.base import ATTACKS, MARGIN, Attack, Finding, Progress, Target
from splitsec.privacy.audit.metrics import auc
from splitsec.privacy.audit.page import Row

MOST_ROWS = 1000


def gradients_at(head: nn.Module, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the gradient of each row's own loss with respect to the tail's output, flat: (N, features)."""
    leaf = outputs.detach().clone().requires_grad_()
    functional.cross_entropy(head(leaf), labels, reduction="sum").backward(inputs=[leaf])
    assert leaf.grad is not None
    return leaf.grad.flatten(1)


def infer_labels(
    seen: torch.Tensor, labels: torch.Tensor, *, known: int = 1, seed: int = 0
) -> tuple[float, float, float]:
    """Guess labels by the direction of what is seen, from a few known rows of each class.

    Args:
        seen: gradients, or anything else that the server has of each row: (N, features).
        known: rows of each class whose label the attacker knows; they do not count in the result.

    Returns:
        Mean over the classes of the area under the ROC curve of each against the rest; the fraction of right labels;
        and the fraction of the most frequent label, which is what guessing gives.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = [label for label in labels.unique().tolist() if int((labels == label).sum()) > known]
    anchors = {label: [int(row) for row in order if int(labels[row]) == label][:known] for label in classes}
    known_rows = {row for rows in anchors.values() for row in rows}
    rest = torch.tensor([row for row in range(len(labels)) if row not in known_rows])
    directions = functional.normalize(seen.double(), dim=1)
    scores = torch.stack([directions @ directions[rows].mean(0) for rows in anchors.values()], dim=1)[rest]
    truth = labels[rest]
    areas = [auc(scores[:, at], truth == label) for at, label in enumerate(classes)]
    right = torch.tensor(classes)[scores.argmax(1)] == truth
    most = float(torch.bincount(truth).max() / len(truth))
    return sum(areas) / len(areas), float(right.double().mean()), most


class Labels(Attack):
    """Guesses labels by the gradients that the server receives, and by its own output."""

    position = 40

    def needs(self, target: Target) -> str:
        if target.split.head is None:
            return "a second cut (--head), behind which labels stay with the client"
        return "" if target.rows.private_labels is not None else "data with labels"

    def run(self, target: Target, progress: Progress) -> Finding:
        split, private_labels = target.split, target.rows.private_labels
        assert private_labels is not None
        assert split.head is not None
        labels = private_labels[:MOST_ROWS]
        with torch.no_grad():
            outputs = split.tail(split.front(target.rows.private[:MOST_ROWS]))
        area_by_chance, _, _ = infer_labels(torch.randn(len(labels), 8), labels, seed=target.seed)
        rows: list[Row] = []
        for attack, seen in (
            ("labels by gradient direction", gradients_at(split.head, outputs, labels)),
            ("labels by the tail's output", outputs.flatten(1)),
        ):
            area, right, most = infer_labels(seen, labels, seed=target.seed)
            rows += [
                Row(attack, "area under the ROC curve", area, area_by_chance, area > area_by_chance + MARGIN),
                Row(attack, "right labels", right, most, right > most + MARGIN),
            ]
        return Finding(tuple(rows))


ATTACKS.register("labels")(Labels())
