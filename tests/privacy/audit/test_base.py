"""What attacks are given, and what is common to what they give."""

from __future__ import annotations

import torch
from support.attacked import target_at

from splitsec.privacy.audit.base import ATTACKS, Steps, compare_images


def test_every_attack_stands_in_an_order_of_its_own() -> None:
    assert set(ATTACKS.names()) == {"inverse", "optimise", "hijack", "labels", "members", "encrypted"}
    assert len({attack.position for attack in ATTACKS}) == 6


def test_steps_depend_on_the_effort() -> None:
    steps = Steps(quick=10, thorough=20)
    assert [steps.at("trial"), steps.at("quick"), steps.at("thorough")] == [4, 10, 20]


def test_an_attack_sees_activations_with_the_clients_clip_and_noise(digits: torch.Tensor) -> None:
    images = digits[:20]
    bare, clipped = target_at("pool", digits[:40]), target_at("pool", digits[:40], clip=0.5)
    noisy = target_at("pool", digits[:40], clip=0.5, noise=0.1)
    assert clipped.sent(images).flatten(1).norm(dim=1).max() <= 0.5 + 1e-5
    # The control: without a clip they are longer.
    assert bare.sent(images).flatten(1).norm(dim=1).max() > 1
    assert torch.equal(bare.sent(images), bare.front(images))
    assert torch.equal(clipped.sent(images), clipped.front(images))
    assert not torch.equal(noisy.sent(images), noisy.sent(images))


def test_a_trial_has_few_rows(digits: torch.Tensor) -> None:
    target = target_at("pool", digits[:400], torch.arange(400) % 10, most_victims=100, effort="quick").for_trial()
    rows = target.rows
    assert rows.private_labels is not None
    assert (len(rows.private), len(rows.private_labels), len(rows.public), len(target.victims)) == (64, 64, 128, 32)
    assert target.effort == "trial"


def test_images_as_good_as_the_mean_image_leak_nothing(digits: torch.Tensor) -> None:
    images = digits[:20]
    mean_image = digits.mean(0, keepdim=True).expand_as(images)
    assert [row.leaks for row in compare_images("x", images, mean_image, mean_image).rows] == [False, False]
    assert [row.leaks for row in compare_images("x", images, images, mean_image).rows] == [True, True]
