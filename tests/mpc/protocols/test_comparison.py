"""Comparisons by name: those of the package agree, one of another package takes their place, others are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest
import torch
from support.two_party import run_both, share
from torch import nn

from splitsec.cut import trace
from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.context import Context
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.validate import check_program
from splitsec.mpc.protocols.compare import TableComparison
from splitsec.mpc.protocols.comparison import COMPARISONS, comparison_of
from splitsec.mpc.protocols.sign import at_least_zero
from splitsec.settings.query import Query, check_query

VALUES = torch.tensor([-(1 << 20), -5, -1, 0, 1, 7, 1 << 20])


def _signs(comparison: str) -> torch.Tensor:
    def protocol(context: Context) -> torch.Tensor:
        return at_least_zero(context, share(context, VALUES), high=24)

    (server, client), _ = run_both(protocol, comparison=comparison)
    both: torch.Tensor = server + client
    return both


@pytest.fixture
def reverse() -> Iterator[str]:
    """Register a comparison that swaps signs, as a plugin would, and take it away again."""

    @dataclass(frozen=True)
    class Reverse(TableComparison):
        def signs(self, context: Context, *parts: object, **named: object) -> object:  # type: ignore[override]
            signs = super().signs(context, *parts, **named)  # type: ignore[arg-type]
            return ~signs if context.rank == 0 else signs

    COMPARISONS.register("reverse")(Reverse)
    yield "reverse"
    del COMPARISONS._entries["reverse"]


@pytest.mark.parametrize("name", ["tables", "dcf"])
def test_the_comparisons_of_the_package_find_signs(name: str) -> None:
    assert name in COMPARISONS.names()
    assert _signs(name).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_registered_comparison_takes_the_place_of_the_usual_one(reverse: str) -> None:
    """The control: a comparison that is wrong on purpose is seen to be wrong."""
    assert _signs(reverse).tolist() == [1, 1, 1, 0, 0, 0, 0]
    check_query(Query(comparison=reverse))


def test_an_unknown_comparison_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no comparison 'abacus'; choose one of: .*tables"):
        comparison_of("abacus", 5, 0, 8)
    with pytest.raises(ConfigError, match="there is no comparison 'abacus'"):
        check_query(Query(comparison="abacus"))
    program, _ = compile_tail(trace(nn.Linear(3, 2)), (1, 3))
    with pytest.raises(MessageError, match="compares by 'abacus', which is not known here"):
        check_program(msgspec.structs.replace(program, comparison="abacus"))


def test_what_is_compared_says_how_many_bits_and_words_it_has() -> None:
    item = comparison_of("tables", 65, 3, 19)
    assert (item.width, item.words) == (16, 2)
    assert item.shared_shapes() == []
    assert comparison_of("dcf", 65, 3, 19).shared_shapes() == [(16, 65, 2), (1, 2)]
