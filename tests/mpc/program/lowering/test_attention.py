"""Attention as steps: scores, their softmax, and what the masks of torch mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def _self_attention(causal: bool) -> nn.Module:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
            self.mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1) if causal else None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, x, x, need_weights=False, attn_mask=self.mask)[0]

    return Layer()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_several_heads_is_that_of_torch(causal: bool) -> None:
    operations = expect_same(_self_attention(causal), X)
    assert operations.count("softmax") == 1
    assert operations.count("matmul") == 2


def test_a_causal_mask_hides_what_comes_later() -> None:
    changed = X.clone()
    changed[:, -1] += 3
    _, before = lowered(_self_attention(True), X)
    _, after = lowered(_self_attention(True), changed)
    assert torch.equal(before[:, :-1], after[:, :-1])
    # The control: without the mask the first token hears of the last.
    assert not torch.equal(
        lowered(_self_attention(False), X)[1][:, 0], lowered(_self_attention(False), changed)[1][:, 0]
    )


def test_scaled_dot_products_are_those_of_torch() -> None:
    assert "softmax" in expect_same(lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3), X)
    expect_same(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), X)


def test_the_weights_of_attention_are_refused() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x, x, x)[1]

    with pytest.raises(UnsupportedLayerError):
        lowered(Layer(), X)
