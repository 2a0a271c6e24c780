import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.two_party import run_both, share

from splitsec.errors import MessageError
from splitsec.mpc.context import Context
from splitsec.mpc.protocols.sign import SignMask, at_least_zero
from splitsec.mpc.session.plan import check_plan


def _signs(values: torch.Tensor, *, low: int = 0, high: int = 62) -> torch.Tensor:
    def protocol(context: Context) -> torch.Tensor:
        return at_least_zero(context, share(context, values), low=low, high=high)

    (server, client), _ = run_both(protocol)
    return server + client


@pytest.mark.parametrize("high", [1, 3, 4, 5, 9])
def test_every_value_of_a_small_window(high: int) -> None:
    values = torch.arange(-(2**high) + 1, 2**high - 1).repeat(20)
    assert torch.equal(_signs(values, high=high), (values >= 0).long())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-(2**62) + 2**17, 2**62 - 2**17), min_size=1, max_size=70))
def test_the_real_ring_to_its_edges(values: list[int]) -> None:
    tensor = torch.tensor([*values, 0, -1, 1, 2**62 - 2**17, -(2**62) + 2**17])
    assert torch.equal(_signs(tensor), (tensor >= 0).long())


def test_bits_below_the_window_count_for_nothing_above_one_unit() -> None:
    values = torch.randint(-(2**40), 2**40, (7, 300))
    values = values[:, (values.abs() >= 2**16).all(0)]
    assert torch.equal(_signs(values, low=16, high=41), (values >= 0).long())


@pytest.mark.parametrize("item", [SignMask(0, 0, 5), SignMask(3, 5, 5), SignMask(3, 0, 63), SignMask(3, -1, 8)])
def test_impossible_plans_are_refused(item: SignMask) -> None:
    with pytest.raises(MessageError):
        check_plan((item,))
