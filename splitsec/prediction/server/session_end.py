"""The end of a worker: asked for by signals, enforced by the kernel's alarm."""

from __future__ import annotations

import signal

from splitsec.errors import RefusedError

# For the query that runs when the server is stopped.
QUERY_SECONDS = 3.0
# To tell the client and the dealer, and to close sockets; then the kernel ends the process.
TELL_SECONDS = 1.0
CLEAN_SECONDS = 8.0
STOPPING = "the server is stopping"
MAKES_WAY = "the session made way for a newer one of the same client"


class Ending:
    """State of this process: whether it is asked to end its session, and why.

    Attributes:
        reason: empty until it is asked.
    """

    def __init__(self) -> None:
        self.reason = ""

    def listen(self) -> None:
        """Take SIGTERM (the server is stopping) and SIGUSR1 (make way for a newer session) from now on."""
        signal.signal(signal.SIGTERM, lambda *_: self._ask(STOPPING))
        signal.signal(signal.SIGUSR1, lambda *_: self._ask(MAKES_WAY))
        signal.signal(signal.SIGALRM, self._overdue)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})

    def check(self) -> None:
        """Raise `RefusedError` if the process is asked to end; called where no query runs."""
        if self.reason:
            raise RefusedError(self.reason)

    def begin(self) -> None:
        """Begin the end of the session: give what is left to do a moment and no longer, whatever hangs."""
        if self.reason:
            self._last(TELL_SECONDS)
        elif signal.getsignal(signal.SIGALRM) == self._overdue:
            self._last(CLEAN_SECONDS)

    def _ask(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            signal.setitimer(signal.ITIMER_REAL, QUERY_SECONDS)

    def _overdue(self, *_: object) -> None:
        self._last(TELL_SECONDS)
        raise RefusedError(self.reason)

    def _last(self, seconds: float) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
