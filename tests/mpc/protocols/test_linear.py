"""Masks of linear layers: shapes by arithmetic are those of torch."""

from __future__ import annotations

import pytest
import torch

from splitsec.mpc.protocols.linear import LinearMask


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_arithmetic_agrees_with_torch_about_convolutions(
    groups: int, padding: tuple[int, int], stride: tuple[int, int]
) -> None:
    for size in (1, 2, 5, 9):
        for channels in (1, 2, 4):
            for wide in (1, 2):
                item = LinearMask(
                    1, "conv2d", (1, channels, size, size), (2, wide, 3, 3), stride, padding, groups=groups
                )
                try:
                    right = tuple(item.apply(*map(torch.zeros, (item.input, item.weight))).shape) == item.output
                except RuntimeError:
                    right = False
                try:
                    item.check()
                    ours = True
                except ValueError:
                    ours = False
                assert ours == right, item
