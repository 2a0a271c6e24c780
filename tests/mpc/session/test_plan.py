from typing import Any

import pytest
import torch

from splitsec.errors import MessageError
from splitsec.mpc.beaver import BinaryTriple, RandomBit, SquarePair, Triple
from splitsec.mpc.correlation import Correlation
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.protocols.linear import LinearMask
from splitsec.mpc.protocols.relu import ReluMask
from splitsec.mpc.protocols.truncate import Truncation
from splitsec.mpc.ring import shift_right, top_bit
from splitsec.mpc.session.plan import (
    MAX_ITEMS,
    PART_ELEMENTS,
    check_plan,
    correction_count,
    deal,
    expand,
    plan_digest,
    weight_masks,
)


def _dealt(item: Correlation) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seeds = fresh_seed(), fresh_seed()
    corrections = list(deal((item,), *seeds, 3, {}))
    assert sum(part.numel() for part in corrections) == correction_count((item,))
    server = expand((item,), 0, seeds[0], 3, corrections)[0]
    client = expand((item,), 1, seeds[1], 3)[0]
    return list(zip(server, client, strict=True))


@pytest.mark.parametrize(
    "item",
    [
        Triple("mul", (3, 4), (3, 4)),
        Triple("matmul", (3, 4), (4, 5)),
        Triple("conv2d", (2, 2, 5, 5), (4, 2, 3, 3), (2, 2), (1, 1), (1, 1), 1),
        Triple("conv2d", (2, 4, 5, 5), (4, 1, 3, 3), (1, 1), (0, 0), (2, 2), 4),
        Triple("conv1d", (2, 2, 9), (4, 2, 3), (1,), (1,), (1,), 1),
    ],
)
def test_triples_multiply(item: Triple) -> None:
    (a, b, c) = (one + other for one, other in _dealt(item))
    assert torch.equal(item._apply(a, b), c)


def test_other_kinds_hold() -> None:
    r, r2 = (one + other for one, other in _dealt(SquarePair((50,))))
    assert torch.equal(r * r, r2)
    a, b, c = (one ^ other for one, other in _dealt(BinaryTriple((2, 1, 50), (2, 3, 50))))
    assert torch.equal(a & b, c)
    bits, arithmetic = _dealt(RandomBit((500,)))
    assert torch.equal(bits[0] ^ bits[1], arithmetic[0] + arithmetic[1])
    assert set((bits[0] ^ bits[1]).unique().tolist()) == {0, 1}
    mask, shifted, top = (one + other for one, other in _dealt(Truncation((500,), 16)))
    assert torch.equal(shift_right(mask, 16), shifted)
    assert torch.equal(top_bit(mask), top)


def test_queries_never_share_randomness() -> None:
    seed, item = fresh_seed(), (Truncation((100,), 16),)
    first, second = (expand(item, 1, seed, query)[0][0] for query in (0, 1))
    assert not (first == second).any()


def test_corrections_that_do_not_fit_are_refused() -> None:
    item = (SquarePair((4,)),)
    for parts, message in (
        ([torch.zeros(5, dtype=torch.int64)], "more corrections than the plan takes"),
        ([torch.zeros(4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)], "more corrections"),
        ([torch.zeros(3, dtype=torch.int64)], "end after 3 of 4"),
        ([], "end after 0 of 4"),
    ):
        with pytest.raises(MessageError, match=message):
            expand(item, 0, fresh_seed(), 0, parts)


def test_corrections_come_in_parts_that_are_large_or_hold_several() -> None:
    sizes, seeds = (
        (PART_ELEMENTS + 5, 3, 4, PART_ELEMENTS // 2 + 1, PART_ELEMENTS // 2, 7),
        (fresh_seed(), fresh_seed()),
    )
    plan = tuple(SquarePair((size,)) for size in sizes)
    parts = list(deal(plan, *seeds, 0, {}))
    assert [part.numel() for part in parts] == [sizes[0], sum(sizes[1:5]), sizes[5]]
    assert [part.numel() for part in deal((), *seeds, 0, {})] == [0]
    pairs = zip(expand(plan, 0, seeds[0], 0, iter(parts)), expand(plan, 1, seeds[1], 0), strict=True)
    for server, client in pairs:
        r, r2 = (one + other for one, other in zip(server, client, strict=True))
        assert torch.equal(r * r, r2)


@pytest.mark.parametrize(
    "item",
    [
        SquarePair((-1,)),
        SquarePair((1 << 20, 1 << 20)),
        Triple("matmul", (3, 4), (5, 6)),
        Truncation((3,), 63),
        Triple("conv2d", (1, 1, 3, 3), (1, 1, 3, 3), (0, 0), (0, 0), (1, 1)),
        Triple("conv2d", (1, 1, 3, 3), (1, 1, 3, 3), (), (0, 0), (1, 1)),
        SquarePair((2**63, 0)),
        LinearMask(1, "linear", (2, 3), (4, 5)),
        LinearMask(1, "conv2d", (1, 1, 3, 3), (1, 1, 3, 3), stride=(0, 0)),
        ReluMask(0, 16, 40),
        ReluMask(5, 16, 63),
        ReluMask(5, 16, 16),
    ],
)
def test_impossible_plans_are_refused(item: Correlation) -> None:
    with pytest.raises(MessageError):
        check_plan((item,))


def test_digest_tells_plans_apart() -> None:
    assert plan_digest((SquarePair((4,)),)) != plan_digest((SquarePair((5,)),))
    assert plan_digest((SquarePair((4,)),)) == plan_digest((SquarePair((4,)),))


@pytest.mark.parametrize(
    "item",
    [
        LinearMask(3, "linear", (2, 5), (4, 5)),
        LinearMask(3, "conv2d", (2, 4, 6, 6), (6, 2, 3, 3), (2, 1), (1, 0), (1, 2), 2),
    ],
)
def test_masked_weights_give_shares_of_the_product(item: LinearMask) -> None:
    seeds, plan = (fresh_seed(), fresh_seed()), (item,)
    weight = Stream(fresh_seed()).ring(item.weight)
    masks = weight_masks(plan, seeds[0])
    (correction,) = expand(plan, 0, seeds[0], 7, deal(plan, *seeds, 7, masks))[0]
    a, part = expand(plan, 1, seeds[1], 7, masks={3: weight - masks[3]})[0]
    # What the server computes from the client's message x1 - a, and the client's part, are shares of the product.
    x = Stream(fresh_seed()).ring(item.input)
    assert torch.equal(item.apply(x - a, weight) + correction + part, item.apply(x, weight))


def test_weights_are_masked_alike_by_server_and_dealer_and_anew_each_session() -> None:
    plan, seed = (LinearMask(3, "linear", (2, 5), (4, 5)),), fresh_seed()
    assert torch.equal(weight_masks(plan, seed)[3], weight_masks(plan, seed)[3])
    assert not (weight_masks(plan, seed)[3] == weight_masks(plan, fresh_seed())[3]).any()


CONV = LinearMask(1, "conv2d", (1, 1, 5, 5), (1, 1, 3, 3))


@pytest.mark.parametrize(
    "plan",
    [
        # These two took 20 s of bignum products and 9 s of trial convolutions.
        (Truncation((2**31 - 1,) * 100_000, 16),),
        (CONV,) * 200_000,
        (CONV,) * (MAX_ITEMS + 1),
        (Truncation((2**31 - 1,) * 8, 16),),
        (LinearMask(1, "linear", (2**30, 2**30), (2**30, 2**30)),),
        (LinearMask(1, "conv2d", (1, 3, 8, 8), (4, 2, 3, 3)),),
        (LinearMask(1, "conv2d", (1, 2, 8, 8), (3, 1, 3, 3), groups=2),),
        (LinearMask(1, "conv2d", (1, 1, 2, 2), (1, 1, 3, 3)),),
        (LinearMask(1, "linear", (3,), (4,)),),
        (LinearMask(1, "scale", (2, 3), (2, 2, 3)),),
        (LinearMask(1, "scale", (2, 3), (2,)),),
    ],
)
def test_plans_that_no_program_makes_are_refused_without_a_tensor(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch, "conv2d", None)
    with pytest.raises(MessageError, match="a plan"):
        check_plan(plan)


def test_the_largest_plan_is_checked_without_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", None)
    monkeypatch.setattr(torch, "conv2d", None)
    check_plan(tuple(LinearMask(layer, "conv2d", (1, 1, 5, 5), (1, 1, 3, 3)) for layer in range(MAX_ITEMS)))
