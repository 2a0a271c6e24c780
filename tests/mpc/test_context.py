"""How two parties compute, and what a context is."""

from __future__ import annotations

import dataclasses

import pytest
from support.two_party import run_both

from splitsec.mpc.context import CLIENT, SERVER, USUAL, Arithmetic, Context


def test_the_usual_arithmetic_has_sixteen_fractional_bits() -> None:
    assert (USUAL.precision, USUAL.comparison) == (16, "tables")
    with pytest.raises(dataclasses.FrozenInstanceError):
        USUAL.precision = 8  # type: ignore[misc]
    assert Arithmetic(20) != USUAL


def test_the_parties_differ_by_rank_alone() -> None:
    seen = []

    def protocol(context: Context) -> None:
        seen.append((context.rank, context.precision, context.comparison, context.planning))

    run_both(protocol, precision=18)
    assert {entry for entry in seen if not entry[3]} == {(SERVER, 18, "tables", False), (CLIENT, 18, "tables", False)}
