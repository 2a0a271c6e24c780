"""Training of a whole model."""

from __future__ import annotations

import torch
from torch import nn

from splitsec.data.loaders import Loader
from splitsec.training.plain import train_alone


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs.sum(1) > 0).long()


def test_a_model_learns_and_ends_in_eval_mode() -> None:
    inputs, labels = _data()
    torch.manual_seed(0)
    model, epochs = nn.Linear(3, 2), []
    loader = Loader(inputs, labels, batch_size=16, seed=1)
    train_alone(model, loader, epochs=30, learning_rate=0.05, on_epoch=epochs.append)
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.9
    assert epochs == list(range(1, 31))
    assert not model.training


def test_control_what_is_not_trained_stays_as_it_is() -> None:
    inputs, labels = _data()
    model = nn.Linear(3, 2).requires_grad_(False)
    before = model.weight.clone()
    train_alone(model, Loader(inputs, labels, batch_size=16, seed=1), epochs=1)
    assert torch.equal(model.weight, before)
