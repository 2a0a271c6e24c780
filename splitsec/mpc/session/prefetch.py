"""Getting the randomness of a session's next queries ready in a thread of its own, while the current query runs."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection

from splitsec.errors import RandomnessError, SplitsecError
from splitsec.mpc.correlation import Plan
from splitsec.mpc.session.plan import query_bytes
from splitsec.mpc.session.session import Session
from splitsec.transport.peer import WATCH_SECONDS

# What the queries that are ready, and have not run, may hold in memory at one party.
MEMORY_BYTES = 1 << 30
MOST_AHEAD = 16


def most_ahead(plan: Plan, rank: int) -> int:
    """Return how many queries a party keeps ready at most: those that fit into memory, at least the next to run."""
    return max(1, min(MOST_AHEAD, MEMORY_BYTES // max(1, query_bytes(plan, rank))))


class Supply:
    """Prepares a session's queries in order, as far as it was asked to. Close it before the session's sockets.

    Args:
        session: only this object may call its `prepare`.
        processors: where the thread may run, if not where the caller does: a party that keeps to one processor for
            its short waits has others for this.
    """

    def __init__(self, session: Session, *, processors: Collection[int] | None = None) -> None:
        self._session = session
        self._processors = processors
        self._wanted = 0
        self._closed = False
        self._error: Exception | None = None
        self._times: dict[int, float] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="supply", daemon=True)
        self._thread.start()

    def want(self, count: int) -> None:
        """Ask for the queries with numbers below `count`."""
        with self._changed:
            self._wanted = max(self._wanted, count)
            self._changed.notify_all()

    def wait(self, query: int, *, timeout: float, watch: Callable[[], None] | None = None) -> float:
        """Wait for `query` and return the milliseconds that it took; may be called again until a later one is ready.

        Args:
            timeout: seconds in which nothing more of it comes.
            watch: called a few times a second meanwhile; what it raises ends the wait.

        Raises:
            RandomnessError: it was not asked for, or it is not ready in time.
            SplitsecError: what went wrong while it was prepared.
        """
        with self._changed:
            if query >= self._wanted:
                raise RandomnessError(f"the randomness of query {query} was never asked for")
            deadline, fetched = time.monotonic() + timeout, self._session.fetched
            while not self._changed.wait_for(lambda: query in self._times or self._error, min(timeout, WATCH_SECONDS)):
                if watch is not None:
                    watch()
                if self._session.fetched != fetched:
                    deadline, fetched = time.monotonic() + timeout, self._session.fetched
                if time.monotonic() >= deadline:
                    break
            for earlier in [number for number in self._times if number < query]:
                del self._times[earlier]
            if query in self._times:
                return self._times[query]
            if self._error is not None:
                raise self._error
        raise RandomnessError(f"the randomness of query {query} is not ready: nothing came for {timeout:g} s")

    def close(self) -> None:
        """Stop after the query that is being prepared."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        if self._processors:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._processors)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._session.next_query < self._wanted)
                if self._closed:
                    return
            began = time.perf_counter()
            try:
                query = self._session.prepare()
            except Exception as error:
                with self._changed:
                    known = isinstance(error, SplitsecError)
                    self._error = error if known else RandomnessError(f"preparing failed: {type(error).__name__}")
                    self._changed.notify_all()
                return
            with self._changed:
                self._times[query] = (time.perf_counter() - began) * 1e3
                self._changed.notify_all()
