"""Activations as steps: comparisons where torch bends once or twice, broken lines where it curves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.errors import UnsupportedLayerError

X = torch.linspace(-7.9, 7.9, 60).view(4, 15)
# A broken line is as far from the function as docs/reference/models.md says.
CURVED = 1.2e-3


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Hardtanh(-0.5, 2.0), torch.relu])
def test_what_bends_is_exact(layer: nn.Module) -> None:
    assert set(expect_same(layer, X)) <= {"relu", "leaky_relu", "hardtanh", "affine", "add"}


@pytest.mark.parametrize(
    "layer", [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.Softplus(), F.logsigmoid]
)
def test_what_curves_is_a_broken_line(layer: nn.Module) -> None:
    assert "curve" in expect_same(layer, X, off=CURVED)


def test_probabilities_are_taken_over_the_dimension_that_is_asked_for() -> None:
    for dim in (1, -1):
        assert "softmax" in expect_same(nn.Softmax(dim), X)
        assert "log_softmax" in expect_same(nn.LogSoftmax(dim), X)
    # The control: over another dimension the values are others.
    _, value = lowered(nn.Softmax(1), X.view(2, 2, 15))
    assert (value.sum(1) - 1).abs().max() < 1e-6
    assert (value.sum(2) - 1).abs().max() > 0.1


def test_a_slope_that_depends_on_the_input_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError):
        lowered(lambda x: F.leaky_relu(x, x.mean()), X)
