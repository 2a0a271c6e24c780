"""Running a program: what is encoded, what is opened, and noise below it."""

from __future__ import annotations

import pytest
import torch
from support.encrypted_tail import compiled, run_tail
from torch import nn

from splitsec.cut import trace
from splitsec.errors import MessageError, RangeError
from splitsec.mpc.program.execute import Encoded, blurred, encode_activation

torch.manual_seed(0)
TAIL = nn.Sequential(nn.Linear(4, 2))


def test_the_client_alone_has_the_result() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    opened, _, _ = run_tail(TAIL, x)
    with torch.no_grad():
        assert (opened - TAIL(x)).abs().max() < 1e-3


def test_an_activation_beyond_the_limit_is_refused_before_anything_is_sent() -> None:
    program, _ = compiled(trace(TAIL), (1, 4), limit=8.0)
    encode_activation(program, torch.full((1, 4), 7.0))
    with pytest.raises(RangeError):
        encode_activation(program, torch.full((1, 4), program.limit * 2))
    with pytest.raises(RangeError):
        encode_activation(program, torch.full((1, 4), float("nan")))


def test_encoded_elements_are_whole_numbers() -> None:
    with pytest.raises(MessageError, match=r"dtype torch.float32, expected torch.int64"):
        Encoded(torch.zeros(1, 4))


def test_the_lowest_bits_are_noise_and_those_above_are_not() -> None:
    share = torch.zeros(1000, dtype=torch.int64)
    noisy = blurred(share, 10)
    assert ((noisy >= -(1 << 9)) & (noisy < 1 << 9)).all()
    assert len(noisy.unique()) > 500
    # The control: with no bits to hide nothing is added.
    assert torch.equal(blurred(share, 0), share)
