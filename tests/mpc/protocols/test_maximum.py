import itertools

import pytest
import torch
from support.two_party import run_both, share

from splitsec.mpc.context import Context
from splitsec.mpc.protocols.maximum import largest, maximum


def _maximum(values: torch.Tensor, *, zero: bool, shift: int = 0, high: int = 40) -> torch.Tensor:
    def protocol(context: Context) -> torch.Tensor:
        return maximum(context, share(context, values), zero=zero, shift=shift, high=high)

    (server, client), _ = run_both(protocol)
    return server + client


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("zero", [True, False])
def test_every_order_of_small_values_ties_included(size: int, zero: bool) -> None:
    if size == 1 and not zero:
        pytest.skip("one value alone has no contest")
    values = torch.tensor(list(itertools.product(range(-2, 3), repeat=size))).t().contiguous()
    expected = values.max(0).values
    assert torch.equal(_maximum(values, zero=zero, high=4), expected.clamp(min=0) if zero else expected)


@pytest.mark.parametrize("shift", [0, 16])
def test_large_values_and_equal_ones(shift: int) -> None:
    torch.manual_seed(0)
    values = torch.randint(-(2**38), 2**38, (4, 777))
    values[1, :200] = values[0, :200]
    values[2, 200:400] = values[0, 200:400] + 1
    values[:, 400:500] = -5
    for zero in (True, False):
        expected = values.max(0).values.clamp(min=0) if zero else values.max(0).values
        error = _maximum(values, zero=zero, shift=shift) - (expected >> shift)
        assert set(error.unique().tolist()) <= ({0, 1} if shift else {0})


def test_five_rounds() -> None:
    values = torch.randint(-100, 100, (4, 5000))
    _, sessions = run_both(lambda context: maximum(context, share(context, values), zero=True, high=30))
    assert {session.peer.traffic.rounds for session in sessions} == {5}


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 17])
@pytest.mark.parametrize("shift", [0, 4])
def test_the_largest_of_any_number(size: int, shift: int) -> None:
    values = torch.randint(-(2**20), 2**20, (size, 40))
    for zero in (False, True):

        def protocol(context: Context, zero: bool = zero) -> torch.Tensor:
            return largest(context, share(context, values), zero=zero, shift=shift, high=30)

        (server, client), _ = run_both(protocol)
        expected = values.max(0).values.clamp(min=0) if zero else values.max(0).values
        assert set((server + client - (expected >> shift)).tolist()) <= {0, int(shift > 0)}
