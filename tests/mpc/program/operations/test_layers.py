"""Layers with weights: what they are in plain, and how large a result can be."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.encrypted_tail import run_tail
from support.plain_tail import run_plain, step_of
from torch import nn

from splitsec.mpc.program.bounds import size_of
from splitsec.mpc.program.operations import OPERATIONS
from splitsec.mpc.program.program import Weights

GENERATOR = torch.Generator().manual_seed(6)
X = torch.randn(3, 4, generator=GENERATOR)
IMAGES = torch.randn(2, 4, 5, 5, generator=GENERATOR)
LINEAR = Weights(torch.randn(2, 4, generator=GENERATOR).double(), torch.randn(2, generator=GENERATOR).double())
CONV = Weights(torch.randn(6, 2, 3, 3, generator=GENERATOR).double(), torch.randn(6, generator=GENERATOR).double())


def test_a_linear_layer_is_that_of_torch_and_within_its_bound() -> None:
    value = run_plain("linear", X, weights=LINEAR, shape=(3, 2))
    torch.testing.assert_close(value, F.linear(X.double(), LINEAR.weight, LINEAR.bias))
    step = step_of("linear", X, shape=(3, 2))
    bound = OPERATIONS.get("linear").bound(step, [X.abs().max().item()], size_of(step, LINEAR, 16))
    assert value.abs().max() <= bound < 100


def test_a_convolution_has_its_stride_padding_and_groups() -> None:
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 1), "groups": 2}
    expected = F.conv2d(IMAGES.double(), CONV.weight, CONV.bias, **options)  # type: ignore[arg-type]
    value = run_plain("conv2d", IMAGES, weights=CONV, shape=tuple(expected.shape), **options)
    torch.testing.assert_close(value, expected)


def test_scale_and_shift_are_element_by_element() -> None:
    weights = Weights(torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([0.5, 0.0, 0.0, 0.0]).double())
    torch.testing.assert_close(run_plain("scale", X, weights=weights), X.double() * weights.weight + weights.bias)
    torch.testing.assert_close(run_plain("shift", X, weights=weights), X.double() + weights.bias)


def test_on_shares_the_server_alone_has_the_weights() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 2))
    opened, sessions, _ = run_tail(layer, X)
    with torch.no_grad():
        assert (opened - layer(X)).abs().max() < 1e-3
    assert len(sessions) == 2
