"""Lowering whatever only moves elements about, repeats them or puts zeros between them.

Where each element comes from is what torch's own function makes of the elements' numbers; so one form serves rolling,
shuffling, unfolding into patches, padding with a border's values, and others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables

# A program is a message, in which each element has a number of its own.
LARGEST = 2**20


def moved(lowering: Lowering, call: Call) -> Shared:
    """Take each element from where the call takes it; raises `UnsupportedLayerError` where samples are mixed."""
    x, shape, name = call.first, lowering.shape_of(call), call.name
    size, wanted = math.prod(x.shape[1:]), math.prod(shape[1:])
    if wanted > LARGEST:
        raise UnsupportedLayerError(f"layer '{name}' moves {wanted} elements of a sample; {LARGEST} at most")
    numbers = torch.arange(1.0, 2 * size + 1, dtype=torch.float64).view(2, *x.shape[1:])
    first, second = _called(call, numbers).reshape(2, -1) if shape[:1] == x.shape[:1] else (None, None)
    if first is None or second is None or not _alike(first, second, size):
        raise UnsupportedLayerError(f"layer '{name}' moves elements between samples; keep the first dimension as it is")
    index = first.to(torch.int64) - 1
    flat = lowering.reshape(name, x, (x.shape[0], size))
    if (index < 0).any():
        # Zeros come from behind the last element.
        flat = lowering.emit("pad", name, (flat,), (x.shape[0], size + 1), padding=(0, 1))
        index = index.where(index >= 0, size)
    output = lowering.emit("gather", name, (flat,), (x.shape[0], wanted), dim=1, index=tuple(index.tolist()))
    return lowering.reshape(name, output, shape)


def _alike(first: torch.Tensor, second: torch.Tensor, size: int) -> bool:
    """Say whether two samples' elements come from the same places of each."""
    places = first.round()
    if not torch.equal(places, first) or not bool(((first >= 0) & (first <= size)).all()):
        return False
    return torch.equal(second, torch.where(first > 0, first + size, first))


def _called(call: Call, numbers: torch.Tensor) -> torch.Tensor:
    """Return what the call makes of the elements' numbers instead of their values."""
    kwargs = dict(call.kwargs)
    if not call.args:
        del kwargs[next(iter(kwargs))]
    if call.layer is not None:
        result = call.layer(numbers)
    elif isinstance(call.target, str):
        result = getattr(numbers, call.target)(*call.args[1:], **kwargs)
    else:
        result = call.target(numbers, *call.args[1:], **kwargs)
    assert isinstance(result, torch.Tensor)
    return result


_PADS = (
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    *(nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, nn.ZeroPad3d),
)
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(torch.roll, torch.movedim, torch.moveaxis, torch.tile, torch.repeat_interleave, torch.rot90, torch.tril),
    *(torch.triu, torch.channel_shuffle, torch.pixel_unshuffle, torch.diagonal, torch.fliplr, F.pixel_unshuffle),
    *(F.unfold, torch.swapdims),
)
_METHODS = (
    *("roll", "movedim", "moveaxis", "tile", "repeat_interleave", "rot90", "tril", "triu", "diagonal", "fliplr"),
    *("unfold", "swapdims"),
)
_OPERATIONS = (
    *(*_METHODS, "channel_shuffle", "native_channel_shuffle", "pixel_unshuffle", "im2col", "reflection_pad1d"),
    *("reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d"),
)
_LAYERS: dict[type[nn.Module], Lower] = dict.fromkeys((*_PADS, nn.ChannelShuffle, nn.PixelUnshuffle, nn.Unfold), moved)
LOWERINGS.register("moving")(
    Tables(
        _LAYERS, dict.fromkeys(_FUNCTIONS, moved), dict.fromkeys(_METHODS, moved), {}, dict.fromkeys(_OPERATIONS, moved)
    )
)
