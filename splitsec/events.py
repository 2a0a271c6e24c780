"""What a party reports while it works: small typed events, to a terminal or as JSON lines to a parent process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

import msgspec
from rich.console import Console

from splitsec.errors import plain_text


class Event(msgspec.Struct, frozen=True, tag=True):
    """Base of all events; `str` gives an event as one line for people, empty where there is nothing to say."""

    party: str


class Listening(Event, frozen=True):
    """The party's socket is bound; `address` has the port that it got."""

    address: str

    def __str__(self) -> str:
        return f"{self.party} listens on {self.address}"


class Joined(Event, frozen=True):
    """A client is there (at the server), or has been welcomed (at a client)."""

    name: str

    def __str__(self) -> str:
        return f"{self.party}: {self.name} is here"


class RoundDone(Event, frozen=True):
    """A round is over.

    Attributes:
        round: its number, from 1 on.
        bytes_sent, bytes_received: by this party's training links so far.
        samples: how many the server learned from in this round.
        dropped: the clients that did not finish it.
    """

    round: int
    rounds: int
    loss: float
    accuracy: float
    bytes_sent: int
    bytes_received: int
    samples: int = 0
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        without = f"  without {', '.join(self.dropped)}" if self.dropped else ""
        return (
            f"{self.party}: round {self.round}/{self.rounds}  loss {self.loss:.4f}  accuracy {self.accuracy:.2%}  sent "
            f"{size(self.bytes_sent)}  received {size(self.bytes_received)}{without}"
        )


class Dropped(Event, frozen=True):
    """The server goes on without a client in this round, counted from 1."""

    name: str
    round: int
    reason: str

    def __str__(self) -> str:
        return f"{self.party}: {self.name} {self.reason}; the round goes on without it"


class Allowed(Event, frozen=True):
    """A session was opened for a client, and the server answers `left` more of its rows."""

    left: int

    def __str__(self) -> str:
        return f"{self.party}: the server answers {self.left:,} more predictions"


class Predicted(Event, frozen=True):
    """`done` of a client's encrypted predictions are done."""

    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.party}: {self.done} of {self.total} encrypted predictions" if self.done else ""


class Finished(Event, frozen=True):
    """The party has done all that it had to do."""

    seconds: float

    def __str__(self) -> str:
        return f"{self.party} is done after {self.seconds:.1f} s"


class Failed(Event, frozen=True):
    """The party ends with an error: its class, its one line, its exit code."""

    error: str
    message: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.party} failed: {self.message}"


AnyEvent: TypeAlias = Listening | Joined | RoundDone | Dropped | Allowed | Predicted | Finished | Failed
Report: TypeAlias = Callable[[AnyEvent], None]
_decoder = msgspec.json.Decoder(AnyEvent)


def ignore(_event: AnyEvent) -> None:
    """Report nothing."""


def with_first(report: Report, kind: type[AnyEvent], act: Callable[[], None]) -> Report:
    """Return a report that also calls `act` at the first event of a kind."""
    waiting = True

    def passed_on(event: AnyEvent) -> None:
        nonlocal waiting
        if waiting and isinstance(event, kind):
            waiting = False
            act()
        report(event)

    return passed_on


def with_traffic(report: Report, traffic: Callable[[], tuple[int, int]]) -> Report:
    """Return a report that adds the bytes sent and received so far to the end of each round."""

    def add(event: AnyEvent) -> None:
        if isinstance(event, RoundDone):
            sent, received = traffic()
            event = msgspec.structs.replace(event, bytes_sent=sent, bytes_received=received)
        report(event)

    return add


def to_json_lines() -> Report:
    """Return a report that writes one JSON line an event to standard output, with its `time` in UTC (ISO 8601)."""
    lock = threading.Lock()

    def report(event: AnyEvent) -> None:
        with lock:
            time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = {"type": type(event).__name__, "time": time, **msgspec.structs.asdict(event)}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
            sys.stdout.flush()

    return report


def from_json_line(line: str) -> AnyEvent | None:
    """Return the event on a line, or None if the line is something else."""
    try:
        event: AnyEvent = _decoder.decode(line)
        return event
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None


def to_terminal(console: Console) -> Report:
    """Return a report that writes one plain line an event."""

    def report(event: AnyEvent) -> None:
        line = plain_text(str(event))
        if line:
            # Not wrapped, so that a line that is piped into a log stays whole.
            console.print(line, highlight=False, soft_wrap=True)

    return report


def size(count: float) -> str:
    """Return a number of bytes in words, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
