"""Requests to the dealer in a session: seeds, shares of weights, and corrections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from splitsec.errors import MessageError
from splitsec.mpc.correlation import Plan, WirePlan
from splitsec.mpc.program.program import Weights
from splitsec.mpc.protocols.linear import laid_out
from splitsec.mpc.protocols.shared_linear import SharedWeight
from splitsec.mpc.session.messages import (
    Corrections,
    DealQuery,
    JoinSession,
    More,
    SessionSeed,
    ShareWeights,
    WeightShares,
)
from splitsec.mpc.session.plan import correction_count
from splitsec.transport import Link, expect_shape

# Of a query's corrections that may be on their way at once: what a link of 1 Gbit/s holds in a quarter of a second.
WINDOW_BYTES = 1 << 25


def join_session(dealer: Link[Any], session: str, rank: int, client: str, plan: Plan) -> bytes:
    """Enter a session at the dealer; return this party's seed."""
    joined, _ = dealer.request(JoinSession(session, rank, client, WirePlan(plan)))
    if not isinstance(joined, SessionSeed):
        raise MessageError(f"the dealer answered {type(joined).__name__} to a request for a seed")
    return joined.seed


def weight_shares(dealer: Link[Any], session: str, items: Sequence[SharedWeight]) -> dict[int, Weights]:
    """Return the server's shares of the masks of weights that no party knows, by step number."""
    answer, tensors = dealer.request(ShareWeights(session, tuple(items)))
    if not isinstance(answer, WeightShares) or len(tensors["shares"]) != 2 * len(items):
        raise MessageError(f"the dealer answered {type(answer).__name__} to a request for shares of weights")
    shares = {}
    for index, item in enumerate(items):
        weight, bias = tensors["shares"][2 * index : 2 * index + 2]
        expect_shape(weight, item.weight, what="a weight's share")
        expect_shape(bias, item.bias, what="a bias's share")
        shares[item.number] = Weights(laid_out(weight), bias)
    return shares


def corrections(dealer: Link[Any], session: str, plan: Plan, query: int, *, rank: int) -> Iterator[torch.Tensor]:
    """Get the corrections of one query for party `rank`, part by part as they come (int64)."""
    left = 8 * correction_count(plan, rank)
    granted = min(WINDOW_BYTES, left)
    dealer.send(DealQuery(session, query, granted))
    arrived = 0
    while True:
        body, tensors = dealer.receive(spin=True)
        if not isinstance(body, Corrections) or body.query != query:
            raise MessageError("the dealer answered another request")
        part: torch.Tensor = tensors["part"]
        left -= part.nbytes
        arrived += part.nbytes
        granted -= part.nbytes
        # In advance, and only where the dealer has not all the credit it needs: a small query takes no further message.
        if arrived >= WINDOW_BYTES // 4 and granted < left:
            dealer.send(More(session, query, arrived))
            granted += arrived
            arrived = 0
        yield part
        if left <= 0:
            return
