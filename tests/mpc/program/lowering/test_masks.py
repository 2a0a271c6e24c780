"""Masks that everybody knows: elements that are replaced by a number."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_same, lowered

from splitsec.errors import UnsupportedLayerError

X = torch.linspace(-1, 1, 12).view(2, 2, 3)
MASK = torch.tensor([[True, False, False], [False, True, True]])


def test_masked_elements_have_the_number() -> None:
    expect_same(lambda x: x.masked_fill(MASK, -3.0), X)
    _, value = lowered(lambda x: x.masked_fill(MASK, -3.0), X)
    assert (value[:, MASK] == -3.0).all()


def test_where_takes_one_or_the_other_by_a_public_condition() -> None:
    expect_same(lambda x: torch.where(MASK, x, 0.5), X)
    expect_same(lambda x: torch.where(MASK, x * 2, x), X)


def test_a_condition_that_depends_on_the_input_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(lambda x: torch.where(x > 0, x, 0.0), X)
