"""Compressions by name, and tensors of which none of them makes."""

from __future__ import annotations

import pytest
import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.training.compression.base import COMPRESSIONS, check_dtypes, coders


@pytest.mark.parametrize("name", ["none", "float16", "bfloat16", "topk:0.5"])
def test_what_is_packed_at_one_end_is_unpacked_at_the_other(name: str) -> None:
    values, rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    for sender, receiver in zip(coders(name, 10), coders(name, 10), strict=True):
        back = receiver.unpack(sender.pack(values, rows), (3, 8))
        assert (back.dtype, tuple(back.shape)) == (torch.float32, (3, 8))
        assert (back - values).abs().max() <= values.abs().max()


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no compression 'zip'"):
        coders("zip", 10)
    assert "none" in COMPRESSIONS


def test_tensors_of_another_compression_are_refused() -> None:
    with pytest.raises(MessageError, match=r"as torch.float16, expected torch.float32"):
        check_dtypes([torch.zeros(1).half()], torch.float32)
    check_dtypes([torch.zeros(1)], torch.float32)
