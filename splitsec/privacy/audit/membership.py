"""Membership: whether a row was trained on, from the model that is released.

S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, "Privacy risk in machine learning: analyzing the connection to
overfitting", CSF 2018, section 3.2: rows with a small loss are taken for members. The fraction of members found at few
false alarms: N. Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022, section 3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from splitsec.privacy.audit.base import ATTACKS, MARGIN, Attack, Finding, Progress, Target
from splitsec.privacy.audit.metrics import auc, true_positives_at
from splitsec.privacy.audit.page import Row


def infer_members(
    model: nn.Module, inside: tuple[torch.Tensor, torch.Tensor], outside: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float]:
    """Guess members by their loss.

    Args:
        inside, outside: images and labels of rows that were trained on, and of rows that were not.

    Returns:
        The area under the ROC curve (0.5 is a guess), and the fraction of members found at 1 % false alarms.
    """
    model.eval()
    with torch.no_grad():
        losses = [
            torch.cat(
                [
                    functional.cross_entropy(model(part), part_labels, reduction="none")
                    for part, part_labels in zip(images.split(256), labels.split(256), strict=True)
                ]
            )
            for images, labels in (inside, outside)
        ]
    scores = -torch.cat(losses)
    truth = torch.cat([torch.ones(len(losses[0]), dtype=torch.bool), torch.zeros(len(losses[1]), dtype=torch.bool)])
    return auc(scores, truth), true_positives_at(scores, truth, 0.01)


class Membership(Attack):
    """Tells the private rows, on which the model was trained, from the public ones."""

    scope = "model"
    position = 50

    def needs(self, target: Target) -> str:
        if target.rows.private_labels is None:
            return "data with labels"
        return "" if target.trained else "a model trained here on the private rows alone (--epochs, no --weights)"

    def run(self, target: Target, progress: Progress) -> Finding:
        rows = target.rows
        assert rows.private_labels is not None
        assert rows.public_labels is not None
        area, members = infer_members(
            target.model, (rows.private, rows.private_labels), (rows.public, rows.public_labels)
        )
        with torch.no_grad():
            right = float((target.model(rows.public).argmax(1) == rows.public_labels).double().mean())
        return Finding(
            (
                Row("membership by loss", "area under the ROC curve", area, 0.5, area > 0.5 + MARGIN),
                Row("membership by loss", "members found at 1 % false alarms", members, 0.01, members > 0.01 + MARGIN),
            ),
            note=f"Its accuracy on rows that it has not seen is {right:.1%}.",
        )


ATTACKS.register("members")(Membership())
