"""Lowering as a whole: which values are steps, what is computed at once, and how what has no form is named."""

from __future__ import annotations

import pytest
import torch
from support.plain_tail import expect_same, lowered
from torch import nn

from splitsec.cut import trace
from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.compile import compile_tail

X = torch.linspace(-1, 1, 12).view(3, 4)


def test_what_does_not_depend_on_the_input_is_computed_before() -> None:
    constant = torch.ones(4)
    assert expect_same(lambda x: x + (constant.exp() * 2 - 1).sum(), X) == ["shift"]


def test_a_layer_without_a_form_is_named_with_its_path() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"'0\.1'"):
        lowered(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Softsign())), X)


def test_a_hook_is_named_and_what_to_do_about_it() -> None:
    layer = nn.Sequential(nn.Linear(4, 2))
    layer[0].register_forward_hook(lambda _module, _inputs, output: output + 1)
    with pytest.raises(UnsupportedLayerError, match="has a hook, which nobody could run; remove it"):
        lowered(layer, X)


def test_an_output_that_mixes_rows_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="mixes the samples of a batch"):
        lowered(lambda x: x.reshape(2, 6), X)


def test_the_result_is_the_last_value_also_where_others_come_after_it() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        result = x * 2
        x.relu()
        return result

    operations = expect_same(function, X)
    assert operations[0] == "affine"


def test_a_table_of_positions_is_looked_up_before_anything_is_shared() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table(torch.arange(x.shape[1]))

    positions = Positions().eval()
    rows = torch.linspace(-1, 1, 24).view(2, 3, 4)
    assert expect_same(positions, rows) == ["shift"]
    program, _ = compile_tail(trace(positions), (2, 3, 4))
    assert [step.op for step in program.steps] == ["shift"]
    with pytest.raises(UnsupportedLayerError, match="looking up a row would show the server which one"):
        compile_tail(trace(nn.Sequential(nn.Embedding(8, 4))), (2, 3))
