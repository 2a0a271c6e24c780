"""How server and client get a session's corrections from the dealer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from splitsec.errors import MessageError
from splitsec.mpc.linear import laid_out
from splitsec.mpc.messages import Corrections, DealQuery, JoinSession, More, SessionSeed, ShareWeights, WeightShares
from splitsec.mpc.plan import Plan, correction_count
from splitsec.mpc.program import Weights
from splitsec.mpc.shared import SharedWeight
from splitsec.training.messages import DealerBody
from splitsec.transport import Link, expect_tensor

# Of a query's corrections that may be on their way at once: what a link of 1 Gbit/s holds in a quarter of a second.
WINDOW_BYTES = 1 << 25


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
    left = 8 * correction_count(plan, rank)
    granted = min(WINDOW_BYTES, left)
    dealer.send(DealQuery(session, query, granted))
    arrived = 0
    while True:
        body, tensors = dealer.receive(spin=True)
        if not isinstance(body, Corrections) or body.query != query or len(tensors) != 1:
            raise MessageError("the dealer answered another request")
        left -= tensors[0].nbytes
        arrived += tensors[0].nbytes
        granted -= tensors[0].nbytes
        # In advance, and only where the dealer has not all the credit it needs: a small query takes no further message.
        if arrived >= WINDOW_BYTES // 4 and granted < left:
            dealer.send(More(session, query, arrived))
            granted += arrived
            arrived = 0
        yield tensors[0]
        if left <= 0:
            return
