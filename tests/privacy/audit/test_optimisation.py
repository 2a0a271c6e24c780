"""Optimisation of the input finds the images behind activations."""

from __future__ import annotations

import torch
from support.attacked import Steps, split_at, target_at

from splitsec.privacy.audit.metrics import mse
from splitsec.privacy.audit.optimisation import Optimisation, optimise


def test_images_of_a_shallow_cut_are_found_and_of_noise_are_not(digits: torch.Tensor) -> None:
    front = split_at("conv1").front
    victims, public = digits[:8], digits[700:1300]
    guess = public.mean(0, keepdim=True).expand_as(victims)
    with torch.no_grad():
        sent = front(victims)
    images = optimise(front, sent, guess, low=0.0, high=1.0, steps=150)
    assert mse(victims, images) < 0.1 * mse(victims, guess)
    # The control.
    from_noise = optimise(front, torch.randn_like(sent), guess, low=0.0, high=1.0, steps=150)
    assert mse(victims, from_noise) > 0.5 * mse(victims, guess)


def test_the_attack_takes_the_steps_that_it_announces(digits: torch.Tensor) -> None:
    target, steps = target_at("pool", digits[:200], clip=2.0), Steps()
    finding = Optimisation().run(target, steps)
    assert steps.taken == Optimisation().stages(target) == {"optimisation": 4}
    assert len(finding.strips[0].images) == 8
