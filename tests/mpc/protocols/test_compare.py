"""The circuit of a comparison by tables: its shape, and that every value of a small width is compared rightly."""

from __future__ import annotations

import pytest
import torch
from support.two_party import run_both, share

from splitsec.mpc.bit_planes import planes_of
from splitsec.mpc.context import Context
from splitsec.mpc.protocols.compare import (
    DIGIT_BITS,
    corrected_planes,
    digit_count,
    is_wide,
    levels,
    mask_planes,
    open_planes,
)
from splitsec.mpc.protocols.sign import at_least_zero


@pytest.mark.parametrize("width", [1, 4, 5, 16, 17, 40, 60])
def test_groups_join_all_digits_into_one(width: int) -> None:
    assert digit_count(width) == -(-width // DIGIT_BITS)
    for wide in (False, True):
        size = digit_count(width)
        for level in levels(width, wide=wide):
            assert sum(group.size for group in level) == size
            assert not level[0].equal
            size = len(level)
        assert size == 1


def test_few_elements_take_fewer_rounds_and_more_bits() -> None:
    assert is_wide(1)
    assert not is_wide(1000)
    assert len(levels(28, wide=True)) <= len(levels(28, wide=False))
    assert corrected_planes(28, 1) > corrected_planes(28, 1000)
    assert mask_planes(28, 1) >= 1


def test_every_value_of_a_small_width_has_the_right_sign() -> None:
    values = torch.arange(-255, 256)

    def protocol(context: Context) -> torch.Tensor:
        return at_least_zero(context, share(context, values), high=8)

    (server, client), _ = run_both(protocol)
    assert torch.equal(server + client, (values >= 0).long())


def test_planes_are_opened_as_the_xor_of_both() -> None:
    def protocol(context: Context) -> torch.Tensor:
        own = planes_of(torch.tensor([5, 9]).numpy() if context.rank else torch.tensor([3, 1]).numpy(), 0, 4)
        return torch.from_numpy(open_planes(context, own).view("int64"))

    (server, client), _ = run_both(protocol)
    assert torch.equal(server, client)
    assert torch.equal(server, torch.from_numpy(planes_of(torch.tensor([6, 8]).numpy(), 0, 4).view("int64")))
