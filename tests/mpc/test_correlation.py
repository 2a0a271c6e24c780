"""Correlated randomness: what every kind has in common, and what a plan may hold."""

from __future__ import annotations

import msgspec
import pytest
import torch

from splitsec.errors import ConfigError
from splitsec.mpc.beaver import SquarePair, Triple
from splitsec.mpc.correlation import CORRELATIONS, Correlation
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.protocols.truncate import Truncation


@pytest.mark.parametrize("item", [SquarePair((3, 2)), Triple("matmul", (2, 3), (3, 4))])
def test_parts_have_the_shapes_that_are_said(item: Correlation) -> None:
    seeds = fresh_seed(), fresh_seed()
    corrections = item.deal(Stream(seeds[0]), Stream(seeds[1]), {})
    assert [tuple(tensor.shape) for tensor in corrections] == [tuple(shape) for shape in item.correction_shapes()]
    for rank, given in ((0, corrections), (1, [])):
        parts = item.expand(rank, Stream(seeds[rank]), given, {})
        assert [tuple(part.shape) for part in parts] == [tuple(shape) for shape in item.part_shapes(rank)]
        assert [tuple(zero.shape) for zero in item.zeros(rank)] == [tuple(part.shape) for part in parts]


def test_both_parties_parts_together_are_what_was_promised() -> None:
    item, seeds = SquarePair((5,)), (fresh_seed(), fresh_seed())
    corrections = item.deal(Stream(seeds[0]), Stream(seeds[1]), {})
    server, client = (item.expand(rank, Stream(seeds[rank]), [corrections, []][rank], {}) for rank in (0, 1))
    r, r2 = (a + b for a, b in zip(server, client, strict=True))
    assert torch.equal(r2, r * r)
    # The control: another query's randomness does not fit.
    assert not torch.equal(r2, (r + 1) * (r + 1))


def test_a_plan_is_read_back_and_holds_no_kind_that_is_not_registered() -> None:
    assert CORRELATIONS.get("SquarePair") is SquarePair
    with pytest.raises(ConfigError, match="there is no correlation 'Wish'"):
        CORRELATIONS.get("Wish")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(SquarePair((2,))), type=SquarePair) == SquarePair((2,))


def test_what_no_program_asks_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        Truncation((3,), -1).check()
