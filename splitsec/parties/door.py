"""Who may take part in a run: checks at the door, which name what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from splitsec import __version__
from splitsec.errors import RefusedError
from splitsec.training.aggregation import MAX_TOTAL_WEIGHT
from splitsec.training.messages import PROTOCOL, Hello
from splitsec.training.schedule import Schedule

MOST_DIMENSIONS = 8
MOST_VALUES = 1 << 26


def check_hello(name: str, hello: Hello, *, cut: str, schedule: Schedule, members: Mapping[str, Hello]) -> None:
    """Raise `RefusedError`, naming the difference, for a client that cannot be in a run with the others.

    Args:
        members: who is in the run, by name; an earlier greeting of the same client does not count.
    """
    if hello.protocol != PROTOCOL:
        raise RefusedError(
            f"{name} speaks protocol {hello.protocol} (splitsec {hello.version}), the server {PROTOCOL} (splitsec "
            f"{__version__}); update it"
        )
    if hello.cut != cut:
        raise RefusedError(f"{name} cuts at '{hello.cut}', the server at '{cut}'")
    if hello.samples < 1:
        raise RefusedError(f"{name} has no samples")
    others = {other: one for other, one in members.items() if other != name}
    if hello.samples + sum(one.samples for one in others.values()) > MAX_TOTAL_WEIGHT:
        raise RefusedError(f"the clients' samples add up to more than {MAX_TOTAL_WEIGHT}")
    if hello.shape:
        _check_shape(name, hello.shape, {} if schedule.join else others)
    if schedule.combine == "none":
        return
    for other, one in others.items():
        _check_alike(name, hello, other, one)


def _check_shape(name: str, shape: tuple[int, ...], others: Mapping[str, Hello]) -> None:
    # The server tries its tail on an activation of this shape.
    if len(shape) > MOST_DIMENSIONS or min(shape) < 1 or math.prod(shape) > MOST_VALUES:
        raise RefusedError(f"an activation of {name} cannot have shape {shape}")
    for other, one in others.items():
        if one.shape and one.shape != shape:
            raise RefusedError(
                f"one row's activation has shape {_times(shape)} at {name} and {_times(one.shape)} at {other}: bring "
                "the inputs of all clients to one size"
            )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _check_alike(name: str, hello: Hello, other: str, one: Hello) -> None:
    mine, theirs = dict(hello.segments), dict(one.segments)
    for key in sorted(set(mine) | set(theirs)):
        if mine.get(key) != theirs.get(key):
            raise RefusedError(
                f"the model of {name} differs from that of {other}: {_described(key, mine)} at {name}, "
                f"{_described(key, theirs)} at {other}"
            )
    if (hello.values, hello.parameters) != (one.values, one.parameters):
        raise RefusedError(f"{name} and {other} do not combine the same number of values")
    if hello.begins != one.begins:
        raise RefusedError(
            f"{name} and {other} begin with different values in their segments, and the server cannot know which are "
            "meant: give all clients the same seed, or the same weights"
        )


def _described(key: str, segments: Mapping[str, tuple[int, ...]]) -> str:
    return f"{key} is {_times(segments[key])}" if key in segments else f"there is no {key}"
