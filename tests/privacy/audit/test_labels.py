"""Labels show in the direction of gradients, and not in noise."""

from __future__ import annotations

import torch
from support.attacked import Steps, target_at
from torch import nn

from splitsec.privacy.audit.labels import Labels, gradients_at, infer_labels


def test_labels_show_in_the_direction_of_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = nn.Linear(16, 4)
    outputs, labels = torch.randn(300, 16, generator=generator), torch.randint(0, 4, (300,), generator=generator)
    area, right, most = infer_labels(gradients_at(head, outputs, labels), labels)
    assert area > 0.95
    assert right > 0.9 > most
    area, right, most = infer_labels(torch.randn(300, 16, generator=generator), labels)
    assert abs(area - 0.5) < 0.1
    assert right < most + 0.1


def test_the_attack_needs_a_u_and_labels(digits: torch.Tensor) -> None:
    labels = torch.arange(200) % 10
    assert "a second cut" in Labels().needs(target_at("pool", digits[:200], labels))
    assert "labels" in Labels().needs(target_at(("pool", "fc2"), digits[:200]))
    target = target_at(("pool", "fc2"), digits[:200], labels)
    assert not Labels().needs(target)
    finding = Labels().run(target, Steps())
    assert [row.leaks for row in finding.rows[:2]] == [True, True]
    assert len(finding.rows) == 4
