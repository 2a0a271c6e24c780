"""The inverse network finds images in activations that have them, and none in noise."""

from __future__ import annotations

import torch
from support.attacked import Steps, split_at, target_at

from splitsec.privacy.audit.inverse_network import Inverse, InverseNetwork, invert
from splitsec.privacy.audit.metrics import mse, ssim


def test_a_shallow_cut_is_inverted_and_noise_is_not(digits: torch.Tensor) -> None:
    front = split_at("conv1").front
    victims, public = digits[:60], digits[700:1300]
    with torch.no_grad():
        seen, sent = front(public), front(victims)
    guess = public.mean(0, keepdim=True).expand_as(victims)
    images = invert(seen, public, steps=200)(sent)
    assert mse(victims, images) < 0.2 * mse(victims, guess)
    assert ssim(victims, images) > 0.85 > ssim(victims, guess)
    # The control: activations that have nothing to do with the images.
    from_noise = invert(torch.randn_like(seen), public, steps=100)(torch.randn_like(sent))
    assert mse(victims, from_noise) > 0.9 * mse(victims, guess)


def test_a_network_from_a_vector_makes_images_of_any_size() -> None:
    network = Inverse((7,), (3, 10, 9))
    assert network(torch.zeros(2, 7)).shape == (2, 3, 10, 9)


def test_the_attack_takes_the_steps_that_it_announces(digits: torch.Tensor) -> None:
    target, steps = target_at("pool", digits[:200]), Steps()
    finding = InverseNetwork().run(target, steps)
    assert steps.taken == InverseNetwork().stages(target) == {"inverse network": 4}
    assert [row.attack for row in finding.rows] == ["inverse network"] * 2
    assert finding.strips[0].images.shape == target.victims.shape
