"""Train a whole model without splitting it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from splitsec.data.loaders import Loader
from splitsec.training.step import make_optimizer


def train_alone(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    learning_rate: float = 2e-3,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda inputs: inputs,
    on_epoch: Callable[[int], None] = lambda _number: None,
) -> None:
    """Train a whole model in plain, in place; it is in eval mode afterwards.

    Args:
        change: what is done to the inputs of each batch.
        on_epoch: called with the number of each epoch, from 1 on, when it begins.
    """
    optimizer = make_optimizer(
        [parameter for parameter in model.parameters() if parameter.requires_grad], learning_rate
    )
    model.train()
    for index in range(epochs * loader.per_epoch if optimizer is not None else 0):
        if index % loader.per_epoch == 0:
            on_epoch(index // loader.per_epoch + 1)
        inputs, labels, _ = loader.batch(index)
        assert labels is not None
        assert optimizer is not None
        optimizer.zero_grad()
        F.cross_entropy(model(change(inputs)), labels).backward()
        optimizer.step()
    model.eval()
