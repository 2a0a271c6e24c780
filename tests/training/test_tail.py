"""The server's half of a step is that of a plain step over all clients' samples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitsec.errors import MessageError
from splitsec.training.tail import TailTrainer

GENERATOR = torch.Generator().manual_seed(3)
BATCHES = {
    name: (torch.randn(rows, 4, generator=GENERATOR), torch.randint(3, (rows,), generator=GENERATOR))
    for name, rows in (("a", 5), ("b", 3))
}


def _tail() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def _plain(tail: nn.Module) -> dict[str, torch.Tensor]:
    """Take one step of Adam on all samples together; return each client's gradient of its own mean loss."""
    activations = {name: batch.clone().requires_grad_() for name, (batch, _) in BATCHES.items()}
    optimizer = torch.optim.Adam(tail.parameters(), lr=0.01)
    labels = torch.cat([labels for _, labels in BATCHES.values()])
    F.cross_entropy(tail(torch.cat(list(activations.values()))), labels).backward()
    optimizer.step()
    return {name: value.grad * 8 / len(value) for name, value in activations.items() if value.grad is not None}


def test_a_step_is_the_plain_step_over_all_samples() -> None:
    split, plain = _tail(), _tail()
    gradients = _plain(plain)
    results = TailTrainer(split, learning_rate=0.01).step(BATCHES)
    assert torch.allclose(split.weight, plain.weight, atol=1e-6)
    for name, result in results.items():
        assert torch.allclose(result.gradient, gradients[name], atol=1e-6)
    # The control: with one client alone the step is another.
    alone = _tail()
    TailTrainer(alone, learning_rate=0.01).step({"a": BATCHES["a"]})
    assert not torch.allclose(alone.weight, plain.weight, atol=1e-6)


def test_forward_and_backward_with_the_clients_own_losses_are_the_same_step() -> None:
    split, plain = _tail(), _tail()
    gradients = _plain(plain)
    trainer = TailTrainer(split, learning_rate=0.01)
    outputs = trainer.forward({name: batch for name, (batch, _) in BATCHES.items()})
    own = {}
    for name, output in outputs.items():
        leaf = output.clone().requires_grad_()
        F.cross_entropy(leaf, BATCHES[name][1]).backward()
        assert leaf.grad is not None
        own[name] = leaf.grad
    back = trainer.backward(own)
    assert torch.allclose(split.weight, plain.weight, atol=1e-6)
    assert all(torch.allclose(back[name], gradients[name], atol=1e-6) for name in back)


def test_what_the_tail_cannot_take_is_refused_before_it_learns() -> None:
    tail = _tail()
    trainer, before = TailTrainer(tail, learning_rate=0.01), copy.deepcopy(tail.state_dict())
    trainer.check(*BATCHES["a"])
    with pytest.raises(MessageError, match="cannot take an activation of shape 5x7"):
        trainer.check(torch.zeros(5, 7), BATCHES["a"][1])
    with pytest.raises(MessageError, match="the model has 3 classes"):
        trainer.check(BATCHES["a"][0], torch.tensor([3] * 5))
    assert all(torch.equal(value, before[key]) for key, value in tail.state_dict().items())
