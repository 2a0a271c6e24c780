"""Whether a row was trained on, from the model that is released.

S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, "Privacy risk in machine learning: analyzing the connection to
overfitting", CSF 2018, section 3.2: rows with a small loss are taken for members. The share of members found at few
false alarms: N. Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022, section 3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.privacy.audit.metrics import auc, true_positives_at


def infer_members(
    model: nn.Module, inside: tuple[torch.Tensor, torch.Tensor], outside: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, float]:
    """Guess members by their loss.

    Args:
        inside, outside: images and labels of rows that were trained on, and of rows that were not.

    Returns:
        The area under the ROC curve (0.5 is a guess), and the share of members found at 1 % false alarms.
    """
    model.eval()
    with torch.no_grad():
        losses = [
            torch.cat(
                [
                    F.cross_entropy(model(part), wanted, reduction="none")
                    for part, wanted in zip(images.split(256), labels.split(256), strict=True)
                ]
            )
            for images, labels in (inside, outside)
        ]
    scores = -torch.cat(losses)
    truth = torch.cat([torch.ones(len(losses[0]), dtype=torch.bool), torch.zeros(len(losses[1]), dtype=torch.bool)])
    return auc(scores, truth), true_positives_at(scores, truth, 0.01)
