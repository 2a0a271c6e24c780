"""Layers of a user's own, which are looked into."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError


class Block(nn.Module):
    """A layer that adds its input to what it does to it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


X = torch.linspace(-1, 1, 12).view(3, 4)


def test_blocks_within_blocks_are_lowered_to_their_layers() -> None:
    assert expect_same(Block(Block(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))), X) == ["linear", "relu", "add", "add"]


def test_what_a_block_lacks_is_named_with_the_whole_path() -> None:
    with pytest.raises(UnsupportedLayerError, match="inner.inner"):
        lowered(nn.Sequential(Block(Block(nn.Sequential(nn.Softsign())))), X)
