"""Refusing segments that do not belong together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from splitsec.cut.origin import Origin, origin_of, segments_digest
from splitsec.errors import ConfigError, RefusedError


def check_belongs(name: str, front: Origin, tail: Origin) -> None:
    """Raise `RefusedError` for a session of a front that does not belong to the server's tail.

    A prediction with such a front would have wrong labels and no error.
    """
    if front.mark == tail.mark:
        return
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
        f"the {name}'s values have changed since the model was cut, so it is not known whether it belongs to the other "
        "segments: load what a run saved with splitsec.load_trained, weights of the whole model with "
        "SplitModel.load_whole_state_dict, or call SplitModel.mark if you have trained the whole yourself"
    )
