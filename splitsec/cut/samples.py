"""Making a sample of a model's input from the model itself, to check a cut where no data is at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from splitsec.cut.check import ROWS
from splitsec.cut.results import one_tensor
from splitsec.cut.state import as_it_was

_SIDES = (32, 28, 16, 8, 64, 96, 128, 224)
_LENGTHS = (16, 8, 32, 64, 128, 256)
# Trying sizes on a larger model would take too long.
LARGEST = 2**28
# How many of the first layers may be the one that takes the input.
_LAYERS = 3


def make_sample(model: nn.Module) -> torch.Tensor | None:
    """Random inputs (rows, ...) that the model can take, as its first layers suggest; None if none of them fits.

    The model is left as it was, and so are the generators of random numbers.
    """
    values = [*model.parameters(), *model.buffers()]
    if any(value.is_meta for value in values) or sum(value.numel() for value in values) > LARGEST:
        return None
    real = next((value for value in values if value.is_floating_point()), torch.empty(0))
    for shape, rows in _shapes(model):
        generator = torch.Generator().manual_seed(0)
        if rows is None:
            sample = torch.randn(ROWS, *shape, generator=generator).to(real.device, real.dtype)
        else:
            sample = torch.randint(0, rows, (ROWS, *shape), generator=generator).to(real.device)
        if _fits(model, sample):
            return sample
    return None


def _fits(model: nn.Module, sample: torch.Tensor) -> bool:
    with as_it_was(model, values=True), torch.inference_mode(False), torch.no_grad():
        model.eval()
        try:
            found = one_tensor(model(sample.clone()))
        except Exception:  # the user's model refuses what does not fit in its own way
            return False
    return isinstance(found, torch.Tensor) and found.is_floating_point() and found.shape[:1] == sample.shape[:1]


def _shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """Shapes of one input to try, and of how many rows if it is looked up."""
    tried = 0
    for module in model.modules():
        found = list(_taken_by(module))
        yield from found
        tried += bool(found)
        if tried == _LAYERS:
            return


def _taken_by(module: nn.Module) -> Iterator[tuple[tuple[int, ...], int | None]]:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield from (((length,), module.num_embeddings) for length in _LENGTHS)
        yield (), module.num_embeddings
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        yield from (((module.in_channels, side, side), None) for side in _SIDES)
    elif isinstance(module, nn.BatchNorm2d):
        yield from (((module.num_features, side, side), None) for side in _SIDES)
    elif isinstance(module, nn.Conv1d):
        yield from (((module.in_channels, length), None) for length in _LENGTHS)
    elif isinstance(module, nn.Conv3d):
        yield from (((module.in_channels, side, side, side), None) for side in (16, 8, 32))
    elif isinstance(module, nn.BatchNorm1d):
        yield (module.num_features,), None
        yield from (((module.num_features, length), None) for length in _LENGTHS)
    elif isinstance(module, nn.RNNBase):
        yield from (((length, module.input_size), None) for length in _LENGTHS)
    elif isinstance(module, nn.MultiheadAttention):
        yield from (((length, module.embed_dim), None) for length in _LENGTHS)
    elif isinstance(module, nn.LayerNorm):
        yield tuple(module.normalized_shape), None
        yield from (((length, *module.normalized_shape), None) for length in _LENGTHS)
    elif isinstance(module, nn.Linear):
        size = module.in_features
        yield (size,), None
        yield from (((length, size), None) for length in _LENGTHS)
        for channels in (1, 3):
            side = math.isqrt(size // channels)
            if channels * side * side == size:
                yield (channels, side, side), None
