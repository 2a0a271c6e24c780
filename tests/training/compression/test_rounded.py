"""Rounding halves the bytes, and errs by its digits alone."""

from __future__ import annotations

import pytest
import torch

from splitsec.training.compression import coders

ROWS = torch.tensor([4, 0, 7])


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    ("name", "error", "share"), [("none", 0.0, 1.0), ("float16", 2e-3, 0.5), ("bfloat16", 2e-2, 0.5)]
)
def test_rounding(name: str, error: float, share: float) -> None:
    torch.manual_seed(0)
    for which in range(2):
        x = torch.randn(3, 5, 4)
        sent = coders(name, 10)[which].pack(x, ROWS)
        got = coders(name, 10)[which].unpack(sent, (3, 5, 4))
        assert (got - x).abs().max() <= error
        assert _bytes(sent) == share * _bytes([x])
