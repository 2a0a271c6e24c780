"""Shapes as steps: no arithmetic, and never across the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError

X = torch.arange(48.0).view(2, 3, 2, 4)


@pytest.mark.parametrize(
    "function",
    [
        nn.Flatten(),
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.transpose(1, 3).contiguous(),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x[:, 1:, :, ::2],
        lambda x: x[:, [2, 0]],
        lambda x: x[:, -1],
        lambda x: torch.cat([x, x[:, :1]], 1),
        lambda x: torch.stack([x, x], 2),
        lambda x: torch.cat(x.chunk(2, 3)[::-1], 3),
        lambda x: torch.cat(x.split([1, 3], -1), -1),
        lambda x: F.pad(x, (1, 0, 2, 1)),
        lambda x: x.flip(3),
        lambda x: x.expand(2, 3, 2, 4).repeat(1, 1, 2, 1),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    ],
)
def test_elements_go_where_torch_puts_them(function: object) -> None:
    assert not {"affine", "mul", "scale", "linear"} & set(expect_same(function, X)[:1])  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [lambda x: x[1:], lambda x: torch.cat([x, x], 0)])
def test_what_moves_elements_across_the_batch_is_refused(function: object) -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(function, X)  # type: ignore[arg-type]


def test_dropout_that_stays_on_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(lambda x: F.dropout(x, 0.5, training=True), X)


def test_padding_is_that_of_torch() -> None:
    expect_same(lambda x: F.pad(x, (1, 1, 1, 1), value=0.5), X)
