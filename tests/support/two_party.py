"""Both parties of a protocol in two threads of the test, over a real socket pair, with a dealer in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from splitsec.mpc.context import SERVER, Arithmetic, Context
from splitsec.mpc.correlation import Plan
from splitsec.mpc.in_process import Dealt, in_threads
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.session.plan import weight_masks
from splitsec.mpc.session.session import Planner, Session

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

    def exchange(self, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        received = super().exchange(own)
        for sent, other in zip(own, received, strict=True):
            self.opened += [sent + other, sent ^ other]
        return received

    def _receive(self, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tensors = super()._receive(like)
        self.received += tensors
        return tensors


class Unmasked(Recorder):
    """The negative control: every one-time mask is zero, at both parties alike."""

    def take(self, item: Any) -> list[torch.Tensor]:
        return [torch.zeros_like(part) for part in super().take(item)]

    def common(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)


def plan_of(protocol: Protocol, precision: int = 16, comparison: str = "tables") -> Plan:
    planner = Planner(SERVER, precision, comparison)
    protocol(planner)
    return planner.plan


def run_both(
    protocol: Protocol,
    *,
    precision: int = 16,
    kind: type[Recorder] = Recorder,
    timeout: float = 60,
    weights: Mapping[int, torch.Tensor] | None = None,
    comparison: str = "tables",
) -> tuple[list[Any], list[Recorder]]:
    """Run `protocol(context)` as both parties; returns their results and sessions, server first.

    `weights` are the server's, in the ring, by layer number: the client gets them masked.
    """
    seeds = [fresh_seed(), fresh_seed()]
    plan = plan_of(protocol, precision, comparison)
    masks = weight_masks(plan, seeds[SERVER])
    if kind is Unmasked:
        masks = {layer: torch.zeros_like(mask) for layer, mask in masks.items()}
    results: list[Any] = [None, None]

    def party(session: Recorder) -> None:
        session.begin(session.prepare())
        results[session.rank] = protocol(session)
        session.end()

    sessions = in_threads(
        kind,
        party,
        Dealt(plan, seeds, masks),
        weights=weights,
        timeout=timeout,
        arithmetic=Arithmetic(precision, comparison),
    )
    return results, sessions


def share(context: Context, secret: torch.Tensor) -> torch.Tensor:
    """This party's share of ring elements that the test knows."""
    mask = context.common(secret.shape)
    return mask if context.rank == SERVER else secret - mask


def uniform_ring(shape: Sequence[int]) -> torch.Tensor:
    return Stream(fresh_seed()).ring(shape)
