"""Who may take part in a run: checks at the door, which name what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from splitsec import __version__
from splitsec.cut.origin import Origin, origin_of, segments_digest
from splitsec.errors import ConfigError, RefusedError
from splitsec.training.aggregation import MAX_TOTAL_WEIGHT
from splitsec.training.messages import PROTOCOL, ColumnsPart, Hello, OpenSession, Serve
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
        _check_shape(name, hello.shape, {} if schedule.join else others, least=0 if schedule.join else 1)
    if schedule.join:
        _check_columns(name, hello, others, schedule)
    if schedule.combine == "none":
        return
    for other, one in others.items():
        _check_alike(name, hello, other, one)


def check_columns_complete(schedule: Schedule, members: Mapping[str, Hello]) -> None:
    """Raise `ConfigError` where all clients with columns are there and something is still missing, or does not fit."""
    parts = {name: hello.columns for name, hello in members.items() if hello.columns is not None}
    if len(parts) < len(schedule.clients):
        return
    if schedule.epochs and not any(part.labels for part in parts.values()):
        raise ConfigError("no client has labels, and training needs them: give one client's data a column 'y'")
    if not schedule.epochs and all(part.asks is False for part in parts.values()):
        raise ConfigError(
            "no client asks for predictions: the one that is to have them needs ask = true (if nothing is said, it is "
            "the one whose data has labels)"
        )
    widths = {name: hello.shape for name, hello in members.items() if hello.shape}
    if schedule.join == "sum" and len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {_times(shape)}" for name, shape in widths.items())
        raise ConfigError(f"activations that are added must have the same number of features; there are: {listed}")


def _check_columns(name: str, hello: Hello, others: Mapping[str, Hello], schedule: Schedule) -> None:
    part = hello.columns
    if part is None:
        return
    if schedule.epochs and not part.trains:
        raise RefusedError(
            f"{name} is there for predictions alone (train = false), but the server's run trains {schedule.epochs} "
            "epochs: for predictions with trained weights the server needs epochs = 0 and the weights of its tail"
        )
    if not schedule.epochs and not part.trained:
        raise RefusedError(
            f"the server's run has no training (epochs = 0) and the front of {name} is not trained: give it weights = "
            "'front.safetensors', as the run saved it that trained the server's tail"
        )
    for other, hello_before in others.items():
        before = hello_before.columns
        if before is not None and schedule.epochs and part.labels and before.labels:
            raise RefusedError(
                f"{name} and {other} both have labels: one client's data has the column 'y', leave it out at the other"
            )
        if before is not None and part.asks and before.asks:
            raise RefusedError(
                f"{name} and {other} both ask for predictions, and one client can: set ask = false at the other"
            )


def _check_shape(name: str, shape: tuple[int, ...], others: Mapping[str, Hello], *, least: int) -> None:
    # The server tries its tail on an activation of this shape. Who has labels alone adds no features to others'.
    if len(shape) > MOST_DIMENSIONS or min(shape) < least or math.prod(shape) > MOST_VALUES:
        raise RefusedError(f"an activation of {name} cannot have shape {shape}")
    for other, one in others.items():
        if one.shape and one.shape != shape:
            raise RefusedError(
                f"one row's activation has shape {_times(shape)} at {name} and {_times(one.shape)} at {other}: bring "
                "the inputs of all clients to one size"
            )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def check_architecture(name: str, hello: Hello, architecture: str) -> None:
    """Raise `RefusedError` for a client whose whole model differs from the server's, where both know theirs."""
    if architecture and hello.architecture and hello.architecture != architecture:
        raise RefusedError(
            f"the model of {name} differs from the server's: their parameters have other names or shapes; give both "
            "the same model, file and version"
        )


def check_belongs(name: str, asked: OpenSession | Serve | ColumnsPart, tail: Origin) -> None:
    """Raise `RefusedError` for a session of a front that does not belong to the server's tail.

    A prediction with such a front would have wrong labels and no error.
    """
    if asked.mark == tail.mark:
        return
    front = Origin(mark=asked.mark, run=asked.run, rounds=asked.rounds)
    raise RefusedError(
        f"the front of {name} does not belong to the server's tail: the front is of {front.described}, the tail of "
        f"{tail.described}; give both the weights of one run (its front.safetensors and tail.safetensors), or of one "
        "whole model"
    )


def check_unchanged(segments: Sequence[nn.Module], name: str) -> None:
    """Raise `ConfigError` where a party's segments have other values than those whose origin they remember.

    Args:
        name: `front` or `tail`.
    """
    origin = origin_of(segments[0])
    if not origin.digest or origin.digest == segments_digest(segments):
        return
    if origin.run:
        raise ConfigError(
            f"the {name} has changed since it was trained in {origin.described}, so it does not belong to the "
            "other segments any more; load what the run saved, or train both in a new run"
        )
    raise ConfigError(
        f"the {name}'s values have changed since the model was cut, so nobody can tell whether it belongs to the other "
        "segments: load what a run saved with splitsec.load_trained, weights of the whole model with "
        "SplitModel.load_whole_state_dict, or call SplitModel.mark if you have trained the whole yourself"
    )


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
