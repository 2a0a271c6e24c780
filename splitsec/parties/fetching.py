"""How server and client get a session's corrections from the dealer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from splitsec.errors import MessageError
from splitsec.mpc.messages import Corrections, DealQuery, JoinSession, SessionSeed
from splitsec.mpc.plan import Plan, correction_count
from splitsec.training.messages import DealerBody
from splitsec.transport import Link


def join_session(dealer: Link[DealerBody], session: str, rank: int, client: str, plan: Plan) -> bytes:
    """Enter a session at the dealer; returns this party's seed."""
    joined, _ = dealer.request(JoinSession(session, rank, client, plan))
    if not isinstance(joined, SessionSeed):
        raise MessageError(f"the dealer answered {type(joined).__name__} to a request for a seed")
    return joined.seed


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
