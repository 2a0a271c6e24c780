"""What a server's run has to say: messages to clients, and the request to the dealer whose answer it waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from splitsec.errors import MessageError, SplitsecError
from splitsec.party_names import DEALER
from splitsec.transport import NO_TENSORS, Message, NamedTensors, Refused
from splitsec.transport.outgoing import Outgoing

Answered = Callable[[Message, NamedTensors, float], None]
Failed = Callable[[SplitsecError, float], None]


class RunFailed(Exception):
    """The run cannot go on, for any client."""

    def __init__(self, reason: SplitsecError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True)
class _Question:
    """A request to the dealer that is not answered yet: what its answer, or an error in its place, leads to."""

    answered: Answered
    failed: Failed


class Outbox:
    """Collects what is to be sent until it is taken."""

    def __init__(self) -> None:
        self._out: list[Outgoing] = []
        self._question: _Question | None = None

    def send(self, name: str, body: Message, tensors: NamedTensors = NO_TENSORS) -> None:
        """Send a message to a party."""
        self._out.append(Outgoing(name, body, tensors))

    def extend(self, outgoing: list[Outgoing]) -> None:
        """Send several messages."""
        self._out += outgoing

    def refuse(self, name: str, error: SplitsecError) -> None:
        """Send a client an error."""
        self.send(name, Refused(reason=str(error), error=type(error).__name__))

    def ask_dealer(self, body: Message, answered: Answered, failed: Failed | None = None) -> None:
        """Send the dealer a request.

        Args:
            answered: called with the answer, its tensors and the time.
            failed: called with the error in its place; None lets it end the run.
        """
        self._question = _Question(answered, failed or _end_the_run)
        self.send(DEALER, body)

    def dealer_answered(self, body: Message, tensors: NamedTensors, now: float) -> None:
        """Go on with the dealer's answer; raises `MessageError` where none was due."""
        question, self._question = self._question, None
        if question is None:
            raise MessageError(f"{type(body).__name__} was not due")
        question.answered(body, tensors, now)

    def dealer_failed(self, error: SplitsecError, now: float) -> None:
        """Go on where the dealer answered with an error."""
        question, self._question = self._question, None
        assert question is not None
        question.failed(error, now)

    def take(self) -> list[Outgoing]:
        """Return what is to be sent, in the order in which it was said, and forget it."""
        out, self._out = self._out, []
        return out


def _end_the_run(error: SplitsecError, _now: float) -> None:
    raise RunFailed(error) from error
