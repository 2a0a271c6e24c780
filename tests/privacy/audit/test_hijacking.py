"""A hijacking server makes images, with a copy of the client's front."""

from __future__ import annotations

import torch
from support.attacked import Steps, split_at, target_at

from splitsec.privacy.audit.hijacking import Hijacking, hijack


def test_hijacking_makes_images_from_its_own_gradients(digits: torch.Tensor) -> None:
    front = split_at("conv1").front
    before = {name: value.clone() for name, value in front.state_dict().items()}
    images = hijack(front, digits[:100], digits[700:1100], steps=20)
    assert images.shape == digits[:100].shape
    assert all(torch.equal(value, before[name]) for name, value in front.state_dict().items())


def test_the_attack_is_of_the_victims_and_takes_the_steps_that_it_announces(digits: torch.Tensor) -> None:
    target, steps = target_at("pool", digits[:200]), Steps()
    finding = Hijacking().run(target, steps)
    assert steps.taken == Hijacking().stages(target) == {"feature-space hijacking": 4}
    assert finding.rows[0].attack == "hijacking (breaks the protocol)"
    assert (finding.strips[0].name, len(finding.strips[0].images)) == ("hijacking", 8)
