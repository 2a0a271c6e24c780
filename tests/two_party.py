"""Both parties of a protocol in two threads of the test, over a real socket pair, with a dealer in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import zmq

from splitsec.mpc.context import CLIENT, SERVER, ComparisonKind, Context
from splitsec.mpc.messages import session_codec
from splitsec.mpc.plan import Plan, deal, weight_masks
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.session import Planner, Session
from splitsec.transport import Peer

Protocol = Callable[[Context], Any]


class Recorder(Session):
    """A session that keeps what this party received, in order, and what it knows from it and its own message.

    `opened` holds the sum and the XOR of both parties' messages: a value may look uniform alone and not be, once this
    party adds what it sent itself.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.received: list[torch.Tensor] = []
        self.opened: list[torch.Tensor] = []

    def exchange(self, mine: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        theirs = super().exchange(mine)
        for one, other in zip(mine, theirs, strict=True):
            self.opened += [one + other, one ^ other]
        return theirs

    def _receive(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tensors = super()._receive(like)
        self.received += tensors
        return tensors


class Unmasked(Recorder):
    """The negative control: every one-time mask is zero, at both parties alike."""

    def take(self, wanted: Any) -> list[torch.Tensor]:
        return [torch.zeros_like(part) for part in super().take(wanted)]

    def common(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)


def plan_of(protocol: Protocol, precision: int = 16, comparison: ComparisonKind = "tables") -> Plan:
    planner = Planner(SERVER, precision, comparison)
    protocol(planner)
    return planner.plan


def run_both(
    protocol: Protocol,
    *,
    precision: int = 16,
    kind: type[Recorder] = Recorder,
    timeout: float = 20,
    weights: Mapping[int, torch.Tensor] | None = None,
    comparison: ComparisonKind = "tables",
) -> tuple[list[Any], list[Recorder]]:
    """Run `protocol(context)` as both parties; returns their results and sessions, server first.

    `weights` are the server's, in the ring, by layer number: the client gets them masked.
    """
    seeds, pair = [fresh_seed(), fresh_seed()], fresh_seed()
    plan = plan_of(protocol, precision, comparison)
    masks = weight_masks(plan, seeds[SERVER])
    if kind is Unmasked:
        masks = {layer: torch.zeros_like(mask) for layer, mask in masks.items()}
    masked = {layer: (weights or {})[layer] - mask for layer, mask in masks.items()}
    context = zmq.Context()
    ends = [context.socket(zmq.PAIR) for _ in range(2)]
    address = f"inproc://{fresh_seed().hex()}"
    ends[0].bind(address)
    ends[1].connect(address)
    sessions = [
        kind(
            Peer(ends[rank], peer="the other party", codec=session_codec, timeout=timeout),
            rank=rank,
            dealt_seed=seeds[rank],
            pair_seed=pair,
            plan=plan,
            corrections=partial(_dealt, plan, seeds, masks, rank),
            comparison=comparison,
            masked_weights=masked if rank == CLIENT else None,
            precision=precision,
        )
        for rank in (SERVER, CLIENT)
    ]
    results: list[Any] = [None, None]
    errors: list[BaseException] = []

    def party(rank: int) -> None:
        try:
            session = sessions[rank]
            session.begin(session.prepare())
            results[rank] = protocol(session)
            session.end()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=party, args=(rank,)) for rank in (SERVER, CLIENT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout + 5)
    context.destroy(linger=0)
    if errors:
        raise errors[0]
    return results, sessions


def _dealt(plan: Plan, seeds: list[bytes], masks: dict[int, torch.Tensor], rank: int, query: int) -> Any:
    return deal(plan, *seeds, query, masks, rank=rank)


def share(context: Context, secret: torch.Tensor) -> torch.Tensor:
    """This party's share of ring elements that the test knows."""
    mask = context.common(secret.shape)
    return mask if context.rank == SERVER else secret - mask


def uniform_ring(shape: Sequence[int]) -> torch.Tensor:
    return Stream(fresh_seed()).ring(shape)
