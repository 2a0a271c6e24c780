"""How server and client get a session's corrections from the dealer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from splitsec.errors import MessageError
from splitsec.mpc.linear import laid_out
from splitsec.mpc.messages import Corrections, DealQuery, JoinSession, SessionSeed, ShareWeights, WeightShares
from splitsec.mpc.plan import Plan, correction_count
from splitsec.mpc.program import Weights
from splitsec.mpc.shared import SharedWeight
from splitsec.training.messages import DealerBody
from splitsec.transport import Link, expect_tensor


def join_session(dealer: Link[DealerBody], session: str, rank: int, client: str, plan: Plan) -> bytes:
    """Enter a session at the dealer; returns this party's seed."""
    joined, _ = dealer.request(JoinSession(session, rank, client, plan))
    if not isinstance(joined, SessionSeed):
        raise MessageError(f"the dealer answered {type(joined).__name__} to a request for a seed")
    return joined.seed


def weight_shares(dealer: Link[DealerBody], session: str, items: Sequence[SharedWeight]) -> dict[int, Weights]:
    """The server's shares of the masks of weights that no party knows, by step number."""
    answer, tensors = dealer.request(ShareWeights(session, tuple(items)))
    if not isinstance(answer, WeightShares) or len(tensors) != 2 * len(items):
        raise MessageError(f"the dealer answered {type(answer).__name__} to a request for shares of weights")
    found = {}
    for index, item in enumerate(items):
        weight = expect_tensor(tensors[2 * index], what="a weight's share", dtype=torch.int64, shape=item.weight)
        bias = expect_tensor(tensors[2 * index + 1], what="a bias's share", dtype=torch.int64, shape=item.bias)
        found[item.number] = Weights(laid_out(weight), bias)
    return found


def corrections(dealer: Link[DealerBody], session: str, plan: Plan, query: int, *, rank: int) -> Iterator[torch.Tensor]:
    """The corrections of one query for party `rank`, part by part as they come."""
    left = correction_count(plan, rank)
    dealer.send(DealQuery(session, query))
    while True:
        body, tensors = dealer.receive(spin=True)
        if not isinstance(body, Corrections) or body.query != query or len(tensors) != 1:
            raise MessageError("the dealer answered another request")
        yield tensors[0]
        left -= tensors[0].numel()
        if left <= 0:
            return
