"""Members of an overfitted model are found, and of one that was not trained are not."""

from __future__ import annotations

import torch
from support.attacked import target_at
from torch import nn

from splitsec.privacy.audit.membership import Membership, infer_members


def test_members_of_an_overfitted_model_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    images, labels = torch.randn(120, 10, generator=generator), torch.randint(0, 2, (120,), generator=generator)
    model = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 2))
    inside, outside = (images[:60], labels[:60]), (images[60:], labels[60:])
    assert abs(infer_members(model, inside, outside)[0] - 0.5) < 0.12
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:60]), labels[:60]).backward()
        optimizer.step()
    assert infer_members(model, inside, outside)[0] > 0.75


def test_the_attack_needs_labels_and_a_model_of_the_private_rows(digits: torch.Tensor) -> None:
    labels = torch.arange(200) % 10
    assert "labels" in Membership().needs(target_at("pool", digits[:200], trained=True))
    assert "--epochs" in Membership().needs(target_at("pool", digits[:200], labels))
    assert not Membership().needs(target_at("pool", digits[:200], labels, trained=True))
