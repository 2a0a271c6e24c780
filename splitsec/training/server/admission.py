"""Who may take part in a run: checks at the door, which name what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from splitsec.errors import RefusedError
from splitsec.settings.run import RunSettings
from splitsec.training.aggregation.masking import MAX_TOTAL_WEIGHT
from splitsec.training.layouts.base import Layout, times
from splitsec.training.messages import Hello
from splitsec.version import PROTOCOL, __version__

MOST_DIMENSIONS = 8
MOST_VALUES = 1 << 26


def check_hello(
    name: str, hello: Hello, *, cut: str, settings: RunSettings, layout: Layout, members: Mapping[str, Hello]
) -> None:
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
    others = {other: member for other, member in members.items() if other != name}
    if hello.samples + sum(other_hello.samples for other_hello in others.values()) > MAX_TOTAL_WEIGHT:
        raise RefusedError(f"the clients' samples add up to more than {MAX_TOTAL_WEIGHT}")
    if hello.shape:
        _check_shape(name, hello.shape, {} if layout.aligns_rows else others, least=0 if layout.aligns_rows else 1)
    layout.check_hello(name, hello, others, settings)
    if not settings.rule.combines:
        return
    for other, other_hello in others.items():
        _check_alike(name, hello, other, other_hello)


def _check_shape(name: str, shape: tuple[int, ...], others: Mapping[str, Hello], *, least: int) -> None:
    # The server tries its tail on an activation of this shape. Who has labels alone adds no features to others'.
    if len(shape) > MOST_DIMENSIONS or min(shape) < least or math.prod(shape) > MOST_VALUES:
        raise RefusedError(f"an activation of {name} cannot have shape {shape}")
    for other, other_hello in others.items():
        if other_hello.shape and other_hello.shape != shape:
            raise RefusedError(
                f"one row's activation has shape {times(shape)} at {name} and {times(other_hello.shape)} at {other}: "
                "bring the inputs of all clients to one size"
            )


def check_architecture(name: str, hello: Hello, architecture: str) -> None:
    """Raise `RefusedError` for a client whose whole model differs from the server's, where both know theirs."""
    if architecture and hello.architecture and hello.architecture != architecture:
        raise RefusedError(
            f"the model of {name} differs from the server's: their parameters have other names or shapes; give both "
            "the same model, file and version"
        )


def _check_alike(name: str, hello: Hello, other: str, other_hello: Hello) -> None:
    own, others = dict(hello.segments), dict(other_hello.segments)
    for key in sorted(set(own) | set(others)):
        if own.get(key) != others.get(key):
            raise RefusedError(
                f"the model of {name} differs from that of {other}: {_described(key, own)} at {name}, "
                f"{_described(key, others)} at {other}"
            )
    if (hello.values, hello.parameters) != (other_hello.values, other_hello.parameters):
        raise RefusedError(f"{name} and {other} do not combine the same number of values")
    if hello.begins != other_hello.begins:
        raise RefusedError(
            f"{name} and {other} begin with different values in their segments, and the server cannot know which are "
            "meant: give all clients the same seed, or the same weights"
        )


def _described(key: str, segments: Mapping[str, tuple[int, ...]]) -> str:
    return f"{key} is {times(segments[key])}" if key in segments else f"there is no {key}"
