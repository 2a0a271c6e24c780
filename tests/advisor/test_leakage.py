"""What a cut leaks, where the answer is known, and which cuts are dominated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splitsec.advisor.cut_costs import CutCost, Encrypted
from splitsec.advisor.leakage import FEATURES, Leak, mark_dominated, measure_leaks
from splitsec.cut import trace


class _Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0 + 1


def test_what_keeps_the_input_leaks_it_and_a_constant_leaks_nothing() -> None:
    torch.manual_seed(0)
    traced = trace(nn.Sequential(nn.Linear(6, 6), _Constant()).eval())
    linear, constant = (node for node in traced.graph.nodes if node.name in ("_0", "add"))
    leaks = measure_leaks(traced, [linear, constant], torch.randn(200, 6))
    assert leaks[linear].recovered > 0.99
    assert leaks[linear].distance_correlation > 0.8
    assert leaks[constant].recovered < 0.1
    assert leaks[constant].distance_correlation < 0.1


def test_of_a_wide_activation_the_same_values_are_looked_at_in_every_batch() -> None:
    """Were others looked at in each batch, no linear map of them would recover the input."""
    torch.manual_seed(0)
    traced = trace(nn.Sequential(nn.Linear(4, 2 * FEATURES)).eval())
    (wide,) = (node for node in traced.graph.nodes if node.op == "call_module")
    assert measure_leaks(traced, [wide], torch.randn(100, 4))[wide].recovered > 0.9


def _cost(name: str, leak: float | None, milliseconds: float | None, moved: int = 100) -> CutCost:
    encrypted = None if milliseconds is None else Encrypted(1, 1, moved, 0, milliseconds, 0.0, True)
    known = None if leak is None else Leak(0.0, leak)
    return CutCost(name, (4,), 4, 0, 0, 0, 0, encrypted, leak=known)


@pytest.mark.parametrize(
    ("others", "dominated_by"),
    [
        ([_cost("less", 0.4, 5.0)], "less"),
        ([_cost("faster", 0.5, 4.0)], "faster"),
        ([_cost("smaller", 0.5, 5.0, moved=99)], "smaller"),
        ([_cost("alike", 0.5, 5.0)], None),
        ([_cost("less but slower", 0.4, 6.0)], None),
        ([_cost("not encrypted", 0.1, None)], None),
        ([_cost("not measured", None, 1.0)], None),
        ([_cost("first", 0.4, 5.0), _cost("last", 0.3, 5.0)], "last"),
    ],
)
def test_a_cut_is_dominated_by_one_that_is_nowhere_worse(others: list[CutCost], dominated_by: str | None) -> None:
    marked = mark_dominated([_cost("cut", 0.5, 5.0), *others])
    assert marked[0].dominated_by == dominated_by


def test_a_cut_without_measures_is_not_marked() -> None:
    marked = mark_dominated([_cost("unknown", None, 9.0), _cost("plain", 0.9, None), _cost("good", 0.1, 1.0)])
    assert [cost.dominated_by for cost in marked] == [None, None, None]
