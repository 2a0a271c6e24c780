"""ATen operations of exported graphs as steps; `expect_same` compares those of all other layers too."""

import pytest
import torch
import torch.nn.functional as F
from support.plain_tail import expect_same
from torch import nn

from splitsec.cut.tracing import trace_exported
from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.compile import compile_tail

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def test_sums_of_a_product_and_a_bias_are_those_of_torch() -> None:
    weight, bias = torch.randn(8, 4), torch.randn(4)
    assert "linear" in expect_same(nn.Sequential(Projection(weight, bias)), ROWS)


class Projection(nn.Module):
    """Multiply as Hugging Face's GPT-2 does."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Added(Projection):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, F.relu(x), self.weight)


def test_addmm_is_one_linear_layer() -> None:
    tail = trace_exported(Added(torch.randn(8, 4), torch.randn(4)).eval(), ROWS)
    program, _ = compile_tail(tail, (3, 8))
    assert [step.op for step in program.steps] == ["relu", "linear"]


def test_random_numbers_and_unknown_operations_are_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn(8)

    class Wave(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.atan(x)

    with pytest.raises(UnsupportedLayerError, match="draws random numbers in eval mode"):
        compile_tail(trace_exported(Noisy().eval(), ROWS), (3, 8))
    with pytest.raises(UnsupportedLayerError, match=r"\(atan\) has no encrypted form: no broken line for it"):
        compile_tail(trace_exported(Wave().eval(), ROWS), (3, 8))
