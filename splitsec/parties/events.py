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
    """Base of all events."""

    party: str


class Listening(Event, frozen=True):
    """The party's socket is bound; `address` has the port that it took."""

    address: str


class Joined(Event, frozen=True):
    """A client is there (at the server), or has been welcomed (at a client)."""

    name: str


class RoundDone(Event, frozen=True):
    """A round is over; `round` counts from 1, bytes are what this party's training links have carried so far,
    `samples` how many the server learned from in this round, `dropped` who did not finish it."""

    round: int
    rounds: int
    loss: float
    accuracy: float
    bytes_sent: int
    bytes_received: int
    samples: int = 0
    dropped: tuple[str, ...] = ()


class Dropped(Event, frozen=True):
    """The server goes on without a client in this round, counted from 1."""

    name: str
    round: int
    reason: str


class Allowed(Event, frozen=True):
    """The server answers so many more rows of this client, which a session has just been opened for."""

    left: int


class Predicted(Event, frozen=True):
    """So many of a client's encrypted predictions are done."""

    done: int
    total: int


class Finished(Event, frozen=True):
    """The party has done all it was to do."""

    seconds: float


class Failed(Event, frozen=True):
    """The party ends with an error: its class, its one line, its exit code."""

    error: str
    message: str
    exit_code: int


AnyEvent: TypeAlias = Listening | Joined | RoundDone | Dropped | Allowed | Predicted | Finished | Failed
Report: TypeAlias = Callable[[AnyEvent], None]
_decoder = msgspec.json.Decoder(AnyEvent)


def ignore(_event: AnyEvent) -> None:
    """Report nothing."""


def to_json_lines() -> Report:
    """A reporter that writes one JSON line an event to standard output, each with the `time` in UTC (ISO 8601)."""
    lock = threading.Lock()

    def report(event: AnyEvent) -> None:
        with lock:
            time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = {"type": type(event).__name__, "time": time, **msgspec.structs.asdict(event)}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
            sys.stdout.flush()

    return report


def from_json_line(line: str) -> AnyEvent | None:
    """The event on a line, or None if the line is something else."""
    try:
        event: AnyEvent = _decoder.decode(line)
        return event
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None


def to_terminal(console: Console) -> Report:
    """A reporter that writes one plain line an event."""

    def report(event: AnyEvent) -> None:
        line = plain_text(describe(event))
        if line:
            # Not broken where it is piped into a log: whoever looks for a line finds it whole.
            console.print(line, highlight=False, soft_wrap=True)

    return report


def describe(event: AnyEvent) -> str:
    """An event as one line for people."""
    match event:
        case Listening():
            return f"{event.party} listens on {event.address}"
        case Joined():
            return f"{event.party}: {event.name} is here"
        case RoundDone():
            without = f"  without {', '.join(event.dropped)}" if event.dropped else ""
            return (
                f"{event.party}: round {event.round}/{event.rounds}  loss {event.loss:.4f}  accuracy "
                f"{event.accuracy:.2%}  sent {size(event.bytes_sent)}  received {size(event.bytes_received)}{without}"
            )
        case Dropped():
            return f"{event.party}: {event.name} {event.reason}; the round goes on without it"
        case Allowed():
            return f"{event.party}: the server answers {event.left:,} more predictions"
        case Predicted():
            return f"{event.party}: {event.done} of {event.total} encrypted predictions" if event.done else ""
        case Finished():
            return f"{event.party} is done after {event.seconds:.1f} s"
        case Failed():
            return f"{event.party} failed: {event.message}"


def size(count: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
