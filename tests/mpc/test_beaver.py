"""Triples: shapes by arithmetic are those of torch."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from splitsec.mpc.beaver import Triple


@pytest.mark.parametrize("op", ["mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"])
def test_arithmetic_agrees_with_torch_about_triples(op: Any) -> None:
    chosen = Random(7)
    right = 0
    for _ in range(400):
        dims = 1 if op.endswith("1d") else 2
        plain = op in ("mul", "matmul")
        count = [chosen.randrange(1, 4) for _ in range(2)] if plain else [dims + 2] * 2
        left, other = (tuple(chosen.choice((1, 2, 2, 4)) for _ in range(one)) for one in count)
        if not plain:
            left = (*left[:2], *(size + 4 for size in left[2:]))
        options = [tuple(chosen.choice(sizes) for _ in range(dims)) for sizes in ((1, 2), (0, 1), (1, 2))]
        item = Triple(op, left, other, *options, groups=chosen.choice((1, 1, 2)))
        try:
            tried = item._apply(*(torch.zeros(shape) for shape in (left, other)))
            expected = [tuple(tried.shape)]
        except RuntimeError:
            expected = None
        try:
            item.check()
            found: Any = item.correction_shapes()
        except ValueError:
            found = None
        assert found == expected, item
        right += found is not None
    assert right > 20
