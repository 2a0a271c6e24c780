"""The dealer's book: who shares which seed, and what has been dealt. No sockets here.

The dealer sees shapes, counts and names. It never receives a share, so nothing that it holds depends on data.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from splitsec.errors import MessageError, RandomnessError, RestartedError
from splitsec.mpc.correlation import Plan
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.protocols.shared_linear import TOKEN_BYTES, SharedWeight, server_shares
from splitsec.mpc.session.plan import (
    MAX_ELEMENTS,
    check_plan,
    correction_count,
    deal,
    plan_digest,
    shared_masks,
    weight_masks,
)

MAX_SESSIONS = 16
# Of one party.
MAX_OWNERS = 16


@dataclass
class _Book:
    members: dict[int, str]
    seeds: dict[int, bytes] = field(default_factory=lambda: {0: fresh_seed(), 1: fresh_seed()}, repr=False)
    seeded: set[int] = field(default_factory=set)
    plans: dict[int, Plan] = field(default_factory=dict)
    masks: dict[int, torch.Tensor] | None = field(default=None, repr=False)
    size: int = 0
    shared: bool = False
    next_query: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 0})


class OwnerBook:
    """Seeds of the owners of weights that no party may know, by token; a token always names the same seed."""

    def __init__(self) -> None:
        self._seeds: dict[str, tuple[str, bytes]] = {}

    def new(self, name: str = "") -> tuple[str, bytes]:
        """Make a token of a party and its seed; the party's oldest make room, never another's."""
        own = [token for token, (owner, _) in self._seeds.items() if owner == name]
        for token in own[: len(own) - MAX_OWNERS + 1]:
            del self._seeds[token]
        token, seed = secrets.token_hex(TOKEN_BYTES), fresh_seed()
        self._seeds[token] = name, seed
        return token, seed

    def seed(self, token: str) -> bytes:
        """Return the seed of a token; raises `RandomnessError` for one that the dealer does not know."""
        if token not in self._seeds:
            raise RandomnessError("the dealer has no seed for these weights; their owner must give them again")
        return self._seeds[token][1]


class DealerBook:
    """State of all open sessions of a dealer."""

    def __init__(self, owners: OwnerBook | None = None) -> None:
        self._sessions: dict[str, _Book] = {}
        self._owners = OwnerBook() if owners is None else owners

    def join(self, session: str, *, rank: int, name: str, server: str, client: str, plan: Plan) -> bytes:
        """Enter a session as party `rank` and get this party's seed, once.

        Args:
            name: the authenticated name of the caller; must be `server` for rank 0 and `client` for rank 1.
            plan: the correlations that each query of this session needs.

        Raises:
            RandomnessError: a stranger, a second seed, or a plan that differs from the other party's.
        """
        members = {0: server, 1: client}
        if members.get(rank) != name:
            raise RandomnessError(f"{name} is not party {rank} of session {session[:8]}")
        check_plan(plan)
        if session not in self._sessions:
            own = [name for name, book in self._sessions.items() if book.members == members]
            if len(own) >= MAX_SESSIONS:
                # A party that vanished never leaves; its oldest session makes room.
                del self._sessions[own[0]]
            self._sessions[session] = _Book(members=members)
        book = self._sessions[session]
        if book.members != members:
            raise RandomnessError(f"session {session[:8]} belongs to other parties")
        if rank in book.seeded:
            raise RandomnessError(f"{name} has had its seed of session {session[:8]}; open a new session")
        other = book.plans.get(1 - rank)
        if other is not None and plan_digest(other) != plan_digest(plan):
            raise RandomnessError(f"the two parties of session {session[:8]} plan different computations")
        book.plans[rank] = plan
        book.seeded.add(rank)
        return book.seeds[rank]

    def corrections(self, session: str, *, name: str, query: int) -> Iterator[torch.Tensor]:
        """Deal query number `query` to a party, in parts; each gets its corrections of each number once, in order.

        The number counts as dealt from now on; the parts are computed as they are asked for, in any thread.

        Raises:
            RestartedError: unknown session.
            RandomnessError: a stranger, the other has not joined, or a number out of order.
        """
        book = self._sessions.get(session)
        if book is None:
            raise RestartedError(f"{name} has no session {session[:8]}: it has ended, or the dealer was started again")
        if name not in book.members.values():
            raise RandomnessError(f"{name} has no session {session[:8]}")
        rank = next(rank for rank, member in book.members.items() if member == name)
        if len(book.plans) < 2:
            missing = book.members[1 - next(iter(book.plans))]
            raise RandomnessError(f"{missing} has not joined session {session[:8]}")
        if rank == 1 and not correction_count(book.plans[1], rank):
            raise RandomnessError(f"{name} takes no corrections in session {session[:8]}")
        due = book.next_query[rank]
        if query != due:
            raise RandomnessError(
                f"query {query} of session {session[:8]} cannot be dealt: the next is {due}, each once"
            )
        if book.masks is None:
            shared = shared_masks(book.plans[0], self._owners.seed)
            book.masks = weight_masks(book.plans[0], book.seeds[0]) | shared
            book.size = correction_count(book.plans[0])
        book.next_query[rank] += 1
        return deal(book.plans[0], book.seeds[0], book.seeds[1], query, book.masks, rank=rank)

    def weight_shares(self, session: str, items: Sequence[SharedWeight], *, name: str) -> list[torch.Tensor]:
        """Return the server's shares of masks of weights that no party of the session knows, once a session.

        Raises:
            RandomnessError: not the session's server, a second time, the client has not joined, or unknown weights.
            MessageError: impossible shapes.
        """
        book = self._sessions.get(session)
        if book is None or book.members[0] != name or book.shared:
            raise RandomnessError(f"{name} gets no shares of weights in session {session[:8]}")
        if len(book.plans) < 2:
            raise RandomnessError(f"{book.members[1]} has not joined session {session[:8]}")
        shapes = [shape for item in items for shape in (item.weight, item.bias)]
        if any(size < 1 for shape in shapes for size in shape) or sum(map(math.prod, shapes)) > MAX_ELEMENTS:
            raise MessageError("weights of an impossible shape")
        book.shared = True
        return server_shares(self._owners.seed, book.seeds[1], items)

    def size(self, session: str, *, name: str) -> int:
        """Return how many ring elements a party of an open session gets for a query."""
        book = self._sessions[session]
        return book.size if book.members[0] == name else correction_count(book.plans[1], 1)

    def leave(self, session: str, *, name: str) -> None:
        """Forget a session; a member that leaves ends it for both."""
        book = self._sessions.get(session)
        if book is not None and name in book.members.values():
            del self._sessions[session]

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)
