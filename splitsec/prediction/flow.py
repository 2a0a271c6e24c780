"""Corrections on their way from the dealer, no faster than their receiver takes them.

A receiver grants credit in bytes: a window with its query, and more as parts arrive. Parts are computed within the
credit alone, so that a query without credit costs the dealer its generator and nothing else, and sockets never hold
more than a window of it. Credit is asked for in advance, so a receiver that keeps up never waits for a round trip.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from splitsec.errors import RandomnessError
from splitsec.transport import Sender

log = logging.getLogger(__name__)
# Of one query, whatever its receiver grants.
MOST_WINDOW = 1 << 26
# Of all queries: beyond this each has one part on its way at most.
MOST_BYTES = 1 << 30
STALE_SECONDS = 600.0


@dataclass(eq=False)
class _Deal:
    to: Sender
    session: str
    query: int
    parts: Iterator[torch.Tensor]
    left: int
    credit: int
    since: float
    # Computed, and not yet granted again.
    sent: int = 0
    running: bool = False
    over: bool = False


class Flow:
    """All queries of a dealer that are being dealt. Safe for several threads.

    Args:
        pool: computes parts.
        emit: takes each part, or the error that ended its query, from a thread of the pool.
        blocked: whether a receiver's connection takes nothing at the moment.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        emit: Callable[[Sender, int, torch.Tensor | Exception], None],
        blocked: Callable[[Sender], bool],
    ) -> None:
        self._pool = pool
        self._emit = emit
        self._blocked = blocked
        self._lock = threading.Lock()
        self._deals: dict[tuple[str, str], _Deal] = {}
        self._sent = 0

    @property
    def running(self) -> int:
        """Return how many queries are being computed right now."""
        with self._lock:
            return sum(deal.running for deal in self._deals.values())

    def __len__(self) -> int:
        return len(self._deals)

    def check(self, to: Sender, session: str) -> None:
        """Raise `RandomnessError` where the receiver's query before is still being dealt."""
        with self._lock:
            deal = self._deals.get((session, to.name))
        if deal is not None:
            raise RandomnessError(f"query {deal.query} of session {session[:8]} is still being dealt; one at a time")

    def begin(
        self, to: Sender, session: str, query: int, parts: Iterator[torch.Tensor], *, size: int, window: int
    ) -> None:
        """Deal a query's parts, `size` bytes in all, and `window` bytes of them before `more`."""
        deal = _Deal(to, session, query, parts, size, min(window, MOST_WINDOW), time.monotonic())
        with self._lock:
            self._deals[session, to.name] = deal
        self._go_on(deal)

    def more(self, to: Sender, session: str, query: int, count: int) -> None:
        """Note that `count` bytes have arrived, and that as many more may be sent."""
        with self._lock:
            deal = self._deals.get((session, to.name))
            if deal is None or deal.query != query:
                # It was dealt to its end meanwhile.
                return
            arrived = min(count, deal.sent)
            deal.credit = min(deal.credit + count, MOST_WINDOW)
            deal.sent -= arrived
            self._sent -= arrived
            deal.since = time.monotonic()
        self._go_on(deal)

    def forget(self, session: str) -> None:
        """Deal no more of a session that is over."""
        with self._lock:
            for deal in [deal for deal in self._deals.values() if deal.session == session]:
                self._end(deal)

    def resume(self, is_open: Callable[[str], bool]) -> None:
        """Go on with queries that had to wait, and forget those that are not taken any more; to be called regularly."""
        now = time.monotonic()
        with self._lock:
            deals = list(self._deals.values())
            for deal in deals:
                stale = now - deal.since > STALE_SECONDS and not deal.running
                if stale:
                    log.warning(
                        "%s took no more of query %d of session %s for %g s; it is forgotten",
                        deal.to.name,
                        deal.query,
                        deal.session[:8],
                        STALE_SECONDS,
                    )
                if stale or not is_open(deal.session):
                    self._end(deal)
        for deal in deals:
            self._go_on(deal)

    def _may_go_on(self, deal: _Deal) -> bool:
        if deal.over or deal.credit <= 0 or self._blocked(deal.to):
            return False
        return self._sent < MOST_BYTES or not deal.sent

    def _go_on(self, deal: _Deal) -> None:
        with self._lock:
            if deal.running or not self._may_go_on(deal):
                return
            deal.running = True
        self._pool.submit(self._run, deal)

    def _run(self, deal: _Deal) -> None:
        """In a thread of the pool: compute parts as long as there is credit for them."""
        try:
            while True:
                with self._lock:
                    if not self._may_go_on(deal):
                        deal.running = False
                        return
                part = next(deal.parts, None)
                with self._lock:
                    if part is None or deal.over:
                        self._end(deal)
                        return
                    size = part.nbytes
                    deal.left -= size
                    deal.credit -= size
                    deal.sent += size
                    self._sent += size
                    deal.since = time.monotonic()
                    if deal.left <= 0:
                        # Before it is on its way: the receiver may ask for the next query at once.
                        self._end(deal)
                self._emit(deal.to, deal.query, part)
        except Exception as error:
            with self._lock:
                self._end(deal)
            self._emit(deal.to, deal.query, error)

    def _end(self, deal: _Deal) -> None:
        deal.running, deal.over = False, True
        self._sent -= deal.sent
        deal.sent = 0
        if self._deals.get((deal.session, deal.to.name)) is deal:
            del self._deals[deal.session, deal.to.name]
