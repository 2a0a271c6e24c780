"""What the server receives in encrypted predictions is of no use to the inverse network; without masks it is."""

from __future__ import annotations

import pytest
import torch
from support.attacked import Steps, split_at, target_at

from splitsec.mpc import in_process as pair
from splitsec.privacy.audit import encrypted_predictions
from splitsec.privacy.audit.encrypted_predictions import EncryptedPredictions, server_view
from splitsec.privacy.audit.inverse_network import invert
from splitsec.privacy.audit.metrics import mse


def _errors(digits: torch.Tensor) -> tuple[float, float]:
    """Return the errors of the inverse network on encrypted predictions, and of a guess."""
    split = split_at("relu3")
    victims, public = digits[:40], digits[700:900]
    with torch.no_grad():
        activations = split.front(torch.cat([public, victims]))
    seen = server_view(split.tail, activations)
    images = invert(seen[:200], public, steps=300)(seen[200:])
    return mse(victims, images), mse(victims, public.mean(0, keepdim=True).expand_as(victims))


def test_encrypted_predictions_give_the_server_no_better_than_a_guess(digits: torch.Tensor) -> None:
    attack, guess = _errors(digits)
    assert attack > 0.97 * guess


def test_control_without_masks_the_same_attack_works(digits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    take = pair._Watched.take
    monkeypatch.setattr(
        pair._Watched, "take", lambda self, wanted: [torch.zeros_like(part) for part in take(self, wanted)]
    )
    # As large as words are read, since a plain activation is in their low bits.
    monkeypatch.setattr(
        encrypted_predictions,
        "numbers_of",
        lambda seen, most: torch.stack(list(seen))[:, :most].double().mul(2.0**-16).float(),
    )
    attack, guess = _errors(digits)
    assert attack < 0.6 * guess


def test_the_attack_takes_the_steps_that_it_announces(digits: torch.Tensor) -> None:
    target, steps = target_at("relu3", digits[:200]), Steps()
    finding = EncryptedPredictions().run(target, steps)
    assert steps.taken == EncryptedPredictions().stages(target)
    assert "the attacker had those of 4 images" in finding.note
    assert "one cut" in EncryptedPredictions().needs(target_at(("pool", "fc2"), digits[:200]))
    # A trial takes no more predictions than tell the pace.
    tried = Steps()
    EncryptedPredictions().try_out(target, tried)
    assert list(tried.taken.values()) == [4, 4]
