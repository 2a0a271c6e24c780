"""Making a sample of a model's input from the model itself, to check a cut without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from splitsec.cut.check import ROWS
from splitsec.cut.results import one_tensor
from splitsec.cut.signature import signature_of
from splitsec.cut.state import as_it_was

_SIDES = (32, 28, 16, 8, 64, 96, 128, 224)
_LENGTHS = (16, 8, 32, 64, 128, 256)
# Trying sizes on a larger model would take too long.
LARGEST = 2**28
# How many of the first layers may be the one that takes the input.
_LAYERS = 3


def make_sample(model: nn.Module, *, shapes_alone: bool = False) -> torch.Tensor | None:
    """Return random inputs (rows, ...) that the model can take, as its first layers suggest; None if none fits.

    The model is left as it was, and so are the generators of random numbers.

    Args:
        shapes_alone: inputs without values will do, for a model that has none, on the meta device.
    """
    values = [*model.parameters(), *model.buffers()]
    signature = signature_of(model)
    bare = any(value.is_meta for value in values)
    if (bare and not shapes_alone) or (not bare and sum(value.numel() for value in values) > LARGEST):
        return None
    real = next((value for value in values if value.is_floating_point()), torch.empty(0))
    if signature.inputs:
        sample = signature.sample(ROWS).to(real.device)
        sample = sample.to(real.dtype) if sample.is_floating_point() else sample
        return sample if bare or takes(model, sample) else None
    for shape, rows in _shapes(model):
        generator = torch.Generator().manual_seed(0)
        if rows is None:
            sample = torch.randn(ROWS, *shape, generator=generator).to(real.device, real.dtype)
        else:
            sample = torch.randint(0, rows, (ROWS, *shape), generator=generator).to(real.device)
        if takes(model, sample):
            return sample
    return None


def takes(model: nn.Module, sample: torch.Tensor) -> bool:
    """Say whether a model in eval mode makes real numbers of inputs, a row of each; it is left as it was."""
    with as_it_was(model, values=True), torch.inference_mode(mode=False), torch.no_grad():
        model.eval()
        try:
            output = one_tensor(model(sample.clone()))
        except Exception:  # the user's model refuses what does not fit in its own way
            return False
    return isinstance(output, torch.Tensor) and output.is_floating_point() and output.shape[:1] == sample.shape[:1]


def _shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """Yield shapes of one input to try, each with the rows of the embedding that looks it up, if there is one."""
    layers = 0
    for module in model.modules():
        shapes = list(_input_shapes(module))
        yield from shapes
        layers += bool(shapes)
        if layers == _LAYERS:
            return


def _input_shapes(layer: nn.Module) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """Yield the shapes of one input of a layer; none if they cannot be told."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield from (((length,), layer.num_embeddings) for length in _LENGTHS)
        yield (), layer.num_embeddings
        return
    for kinds, shapes in _SHAPES.items():
        if isinstance(layer, kinds):
            yield from ((shape, None) for shape in shapes(layer))
            return


def _images(channels: int) -> list[tuple[int, ...]]:
    return [(channels, side, side) for side in _SIDES]


def _sequences(*shape: int, alone: bool = False) -> list[tuple[int, ...]]:
    """Return sequences of values of a shape, if `alone` after a single one of them."""
    return [*([shape] if alone else []), *((length, *shape) for length in _LENGTHS)]


def _flat_images(size: int) -> list[tuple[int, ...]]:
    sides = {channels: math.isqrt(size // channels) for channels in (1, 3)}
    return [(channels, side, side) for channels, side in sides.items() if channels * side * side == size]


# By the kind of a layer, the shapes of its input that are tried, in this order.
_SHAPES: dict[Any, Callable[[Any], list[tuple[int, ...]]]] = {
    (nn.Conv2d, nn.ConvTranspose2d): lambda layer: _images(layer.in_channels),
    nn.BatchNorm2d: lambda layer: _images(layer.num_features),
    nn.Conv1d: lambda layer: [(layer.in_channels, length) for length in _LENGTHS],
    nn.Conv3d: lambda layer: [(layer.in_channels, side, side, side) for side in (16, 8, 32)],
    nn.BatchNorm1d: lambda layer: [(layer.num_features,), *((layer.num_features, length) for length in _LENGTHS)],
    nn.RNNBase: lambda layer: _sequences(layer.input_size),
    nn.MultiheadAttention: lambda layer: _sequences(layer.embed_dim),
    nn.LayerNorm: lambda layer: _sequences(*layer.normalized_shape, alone=True),
    nn.Linear: lambda layer: _sequences(layer.in_features, alone=True) + _flat_images(layer.in_features),
}
