"""Comparisons and choices, by masks that everybody knows and by truth values on shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.plain_tail import expect_same, expect_shared, lowered

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


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x > 0.1, x, 0.5 * x),
        lambda x: torch.where(x < 0.1, 2.0, x),
        lambda x: torch.where(x >= 0.05, 1.0, -1.0),
        lambda x: torch.where(x[:, :1] > x[:, 1:], x[:, :1], x[:, 1:]),
        lambda x: x.masked_fill(x <= -0.3, 7.0),
        lambda x: x.masked_fill(~(x <= -0.3), 7.0),
        lambda x: x.masked_fill(torch.logical_or(x > 0.5, x < -0.5), 0.0),
        lambda x: x.masked_fill((x > -0.5) & (x < 0.5), 0.0),
        lambda x: (x > 0.2).float() * x,
        lambda x: (x > 0.2).to(x.dtype).unsqueeze(1).expand(2, 4, 2, 3).sum(1),
        lambda x: torch.where((x > 0.2) == 0, x, x * 3),
        lambda x: torch.where((x > 0.2).transpose(1, 2).transpose(1, 2), x, MASK.float()),
        lambda x: torch.where(torch.gt(other=x * 0.1 + 0.3, input=x), x, x * 3),
        lambda x: torch.where(1.5 * x > 0.2, x, x * 3) + torch.where(x < 0.2, x, x * 3),
    ],
)
def test_choices_by_a_comparison_of_values(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    expect_same(function, X)


def test_a_mask_on_shares_masks_attention_out() -> None:
    def attend(x: torch.Tensor) -> torch.Tensor:
        mask = (x[..., 0] > 0.0)[:, None, :].expand(2, 4, 4)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    expect_same(attend, torch.linspace(-1, 1, 24).flip(0).roll(7).view(2, 4, 3), off=1e-3)
    masked = lambda x: x.masked_fill(x < -0.9, float("-inf")).softmax(-1)  # noqa: E731
    expect_same(masked, X, off=2e-3)


def test_at_least_zero_is_a_bit_on_shares() -> None:
    expect_shared("at_least_zero", X)
    expect_shared("at_least_zero", torch.zeros(2, 3))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x == 0.5, x, 0.0),
        lambda x: torch.where(x != x.flip(1), x, 0.0),
        lambda x: ((x > 0) + (x < 0.5)).float() * x,
        lambda x: x * x.bool().float(),
    ],
)
def test_what_rounding_decides_and_sums_of_truth_values_are_refused(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(function, X)
