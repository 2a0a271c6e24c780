"""Reciprocals, inverse roots and what is made of them, to a relative 1e-4."""

from __future__ import annotations

import pytest
import torch
from support.two_party import run_both, share

from splitsec.mpc.context import Context
from splitsec.mpc.protocols.normalise import FINE_BITS, inverse_root, reciprocal, row_bits, squares_bits


def _fixed(values: torch.Tensor, bits: int) -> torch.Tensor:
    return (values.double() * 2.0**bits).round().long()


@pytest.mark.parametrize("most", [2, 100, 5000])
def test_a_reciprocal_is_met_over_its_range(most: int) -> None:
    values = torch.linspace(1, most, 101)

    def protocol(context: Context) -> torch.Tensor:
        return reciprocal(context, share(context, _fixed(values, 16)), most=most)

    (server, client), _ = run_both(protocol)
    result = (server + client).double() / 2.0**FINE_BITS
    assert (result * values - 1).abs().max() < 5e-4


def test_an_inverse_root_is_met_over_its_range() -> None:
    values, bits = torch.logspace(-3, 3, 61), squares_bits(1000.0)

    def protocol(context: Context) -> torch.Tensor:
        return inverse_root(context, share(context, _fixed(values, bits)), scale=bits, least=1e-3, most=1000.0)

    (server, client), _ = run_both(protocol)
    result = (server + client).double() / 2.0**FINE_BITS
    assert (result * values.sqrt() - 1).abs().max() < 2e-3


def test_longer_rows_leave_room_for_fewer_bits() -> None:
    assert row_bits(4, 8, 16, 20) >= row_bits(4000, 8, 16, 20) >= 16
    assert squares_bits(2.0) >= squares_bits(2.0**20)
