"""What only moves elements about as steps, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.encrypted_tail import run_tail
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering import moving

IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.ReflectionPad2d(2), nn.ReplicationPad2d((1, 0, 2, 1)), nn.CircularPad2d(1), nn.ConstantPad2d(1, 1.5)),
        *(nn.ChannelShuffle(2), nn.PixelUnshuffle(2), nn.Unfold(3, padding=1, stride=2)),
    ],
    ids=str,
)
def test_layers_move_elements_as_in_torch(layer: nn.Module) -> None:
    expect_same(nn.Sequential(layer), IMAGES)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.roll(x, (1, -2), (2, 3)),
        lambda x: x.movedim(1, -1),
        lambda x: torch.tile(x, (1, 1, 2, 1)),
        lambda x: x.repeat_interleave(3, dim=2),
        lambda x: torch.rot90(x, 1, (2, 3)),
        lambda x: x.tril(1),
        lambda x: torch.triu(x, diagonal=1),
        lambda x: x.diagonal(dim1=2, dim2=3),
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: x.unfold(3, 3, 2),
        lambda x: F.pad(x, (1, 1, 2, 0), mode="reflect"),
        lambda x: F.pad(x, (1, 1), value=2.0),
    ],
)
def test_functions_move_elements_as_in_torch(function: Callable[[Any], Any]) -> None:
    expect_same(function, IMAGES)


def test_both_parties_get_what_torch_gives() -> None:
    layer = nn.Sequential(nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(4, 3, 3))
    assert (run_tail(layer, IMAGES)[0] - layer(IMAGES)).abs().max() < 2e-3


def test_samples_stay_apart() -> None:
    with pytest.raises(UnsupportedLayerError, match="between samples; keep the first dimension as it is"):
        lowered(lambda x: torch.roll(x, 1, 0), IMAGES)


def test_too_many_elements_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "LARGEST", 100)
    with pytest.raises(UnsupportedLayerError, match="moves 144 elements of a sample; 100 at most"):
        lowered(lambda x: x.tril(), IMAGES)
