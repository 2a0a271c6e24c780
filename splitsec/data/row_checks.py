"""Checks of a client's data before it joins a run, so that it finds what others would refuse in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from splitsec.cut import check_batch, vocabulary
from splitsec.errors import ConfigError, CutError, MessageError, first_line
from splitsec.tensors import dtype_name, shape_text

# How many rows show how large activations are.
SAMPLED = 256


def check_inputs(inputs: torch.Tensor, what: str) -> None:
    """Raise `ConfigError` for inputs that no front can take: of another dtype, or not finite; names the first row."""
    if inputs.dtype == torch.uint8:
        raise ConfigError(
            f"{what} are uint8, such as pixels from 0 to 255; save them as float32 and scaled as the model is to see "
            "them, such as images.float() / 255 (numbers of tokens as int64: images.long())"
        )
    if inputs.dtype not in (torch.float32, torch.int64):
        advice = "images.float()" if inputs.is_floating_point() else "images.float(), or tokens with images.long()"
        raise ConfigError(f"{what} are {dtype_name(inputs)} and must be float32 (numbers of tokens int64): {advice}")
    if not inputs.is_floating_point() or not inputs.numel():
        return
    bad = (~torch.isfinite(inputs)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        row = inputs[bad[0]].flatten()
        value = row[~torch.isfinite(row)][0].item()
        raise ConfigError(f"{what} hold {value} in {_rows(bad)}; repair or leave out what is not a finite number")


def check_labels_of(labels: torch.Tensor, inputs: torch.Tensor, what: str) -> None:
    """Raise `ConfigError`, which says what labels are instead and what to do, unless they are one class a row."""
    if labels.shape[:1] != inputs.shape[:1] or labels.dim() == 0:
        count = "one number" if labels.dim() == 0 else str(len(labels))
        raise ConfigError(f"{what}: {count} for {len(inputs)} rows of inputs; there must be one label a row")
    if labels.dim() > 1:
        single = labels.shape[1:] == (1,)
        if single and labels.is_floating_point():
            # The values are checked before the shape, since they may be no classes at all.
            check_labels_of(labels.squeeze(1), inputs, what)
        advice = "labels.squeeze(1)" if single else "from one-hot rows labels.argmax(1); several labels a row cannot be"
        raise ConfigError(f"{what} have shape {tuple(labels.shape)} and must be one class a row: {advice}")
    if labels.is_floating_point():
        broken = (labels != labels.round()).nonzero().flatten().tolist()
        if broken:
            raise ConfigError(
                f"{what} hold {labels[broken[0]].item():g} in {_rows(broken)}: training is for classes alone, which "
                "are whole numbers from 0 on; a regression cannot be trained"
            )
    if labels.dtype != torch.int64:
        raise ConfigError(f"{what} are {dtype_name(labels)} and must be int64: labels.long()")
    negative = (labels < 0).nonzero().flatten().tolist()
    if negative:
        raise ConfigError(
            f"{what} hold {int(labels[negative[0]])} in {_rows(negative)}; classes count from 0: make them 0, 1, ..."
        )


def check_classes(labels: torch.Tensor, classes: int, what: str) -> None:
    """Raise `ConfigError`, naming the first row, where a label is none of the model's classes."""
    beyond = (labels >= classes).nonzero().flatten().tolist()
    if beyond:
        raise ConfigError(
            f"{what} hold {int(labels[beyond[0]])} in {_rows(beyond)}, but the model has {classes} classes, from 0 to "
            f"{classes - 1}: correct the labels, or give the model an output for every class"
        )


def activation_shape(front: nn.Module, inputs: torch.Tensor, *, cut: str, what: str) -> tuple[int, ...]:
    """Return the shape of one row's activation, from trying the front on two rows; the front stays as it is.

    Raises:
        ConfigError: the front cannot take the inputs; names the layer that cannot, and both shapes.
    """
    return tuple(_activation(front, inputs[:2], cut, what).shape[1:])


def largest_activation(front: nn.Module, inputs: torch.Tensor, *, cut: str, what: str) -> float:
    """Return the largest magnitude in the front's activations of some rows; not finite where one of them is not."""
    activation = _activation(front, inputs[:SAMPLED], cut, what)
    return float(activation.abs().max()) if activation.numel() else 0.0


def output_width(model: nn.Module, inputs: torch.Tensor, what: str) -> int | None:
    """Return how many outputs a whole model has for a row, or None where that cannot be told.

    The model may be on the meta device.

    Raises:
        ConfigError: a layer cannot take the inputs; names it, and both shapes.
    """
    reached: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    with _unchanged(model), _watched(model, reached):
        try:
            output = model(inputs)
        except Exception:
            first = reached[0][1] if reached else None
            rows = first.num_embeddings if isinstance(first, (nn.Embedding, nn.EmbeddingBag)) else None
            if first is not None and (rows is not None) == inputs.is_floating_point():
                raise ConfigError(_other_kind(what, inputs, rows)) from None
            reason = _mismatch(*reached[-1]) if reached else ""
            if reason:
                raise ConfigError(_not_taken(what, inputs, reason)) from None
            return None
    return int(output.shape[1]) if isinstance(output, torch.Tensor) and output.dim() == 2 else None


def _other_kind(what: str, inputs: torch.Tensor, rows: int | None) -> str:
    """Return a message for numbers of tokens where real numbers are needed, or the other way round."""
    if rows is None:
        use = "the model computes with them: save them as float32, scaled as it is to see them (images.float() / 255)"
    else:
        use = f"the model looks them up in an embedding: give whole numbers from 0 to {rows - 1}, as int64"
    return f"{what} are {dtype_name(inputs)}, but {use}"


def _not_taken(what: str, inputs: torch.Tensor, reason: str) -> str:
    return (
        f"{what} are {shape_text(inputs.shape[1:])} each, which the model cannot take: {reason}; bring them to the "
        "model's input, or give another model"
    )


def _activation(front: nn.Module, inputs: torch.Tensor, cut: str, what: str) -> torch.Tensor:
    rows = vocabulary(front)
    if (rows is not None) == inputs.is_floating_point():
        raise ConfigError(_other_kind(what, inputs, rows))
    reached: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    with _unchanged(front), _watched(front, reached):
        try:
            activation: torch.Tensor = front(inputs)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            reason = _mismatch(*reached[-1]) if reached else ""
            raise ConfigError(_not_taken(what, inputs, reason or first_line(error))) from error
        try:
            check_batch(activation, inputs, cut)
        except (CutError, MessageError) as error:
            raise ConfigError(f"{what} are {shape_text(inputs.shape[1:])} each: {error}") from None
    return activation.detach()


def check_tokens(inputs: torch.Tensor, front: nn.Module, what: str) -> None:
    """Raise `ConfigError`, naming the first row, for numbers that the front's embedding does not have."""
    rows = vocabulary(front)
    if rows is None or inputs.is_floating_point() or not inputs.numel():
        return
    outside = (inputs < 0) | (inputs >= rows)
    bad = outside.flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        value = int(inputs[bad[0]][outside[bad[0]]].flatten()[0])
        raise ConfigError(
            f"{what} hold {value} in {_rows(bad)}, but the model's embedding has {rows} rows: give numbers from 0 to "
            f"{rows - 1}"
        )


def _rows(numbers: list[int]) -> str:
    more = len(numbers) - 1
    return f"row {numbers[0]}" + (f" and {more} more row{'s' * (more > 1)}" if more else "") + " (counted from 0)"


@contextmanager
def _unchanged(front: nn.Module) -> Iterator[None]:
    """Evaluate in the block and leave the modes and torch's generator as they were."""
    modes = [(module, module.training) for module in front.modules()]
    state = torch.get_rng_state()
    front.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)
        for module, training in modes:
            module.training = training


@contextmanager
def _watched(front: nn.Module, reached: list[tuple[str, nn.Module, tuple[int, ...]]]) -> Iterator[None]:
    """Note each layer that is reached in the block, with the shape of its input."""
    handles = []
    for name, module in front.named_modules():
        if next(module.children(), None) is not None or not name:
            continue

        def note(layer: nn.Module, inputs: tuple[object, ...], name: str = name) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor):
                reached.append((name, layer, tuple(inputs[0].shape)))

        handles.append(module.register_forward_pre_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mismatch(name: str, layer: nn.Module, shape: tuple[int, ...]) -> str:
    """Say why a layer cannot take a shape (batch dimension first); empty where it is not known."""
    for dimensions, convolution in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        if isinstance(layer, convolution):
            if len(shape) != dimensions + 2:
                sides = ("length", "height and width", "depth, height and width")[dimensions - 1]
                return f"layer '{name}' takes channels, {sides} of each, and gets {shape_text(shape[1:])}"
            if shape[1] != layer.in_channels:
                return f"layer '{name}' takes {_channels(layer.in_channels)} and gets {shape[1]}"
            return f"layer '{name}' has a kernel of {shape_text(layer.kernel_size)} and gets {shape_text(shape[1:])}"
    if isinstance(layer, nn.Linear) and shape[-1] != layer.in_features:
        return f"layer '{name}' takes {layer.in_features} features and gets {shape[-1]}"
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and shape[1] != layer.num_features:
        return f"layer '{name}' takes {_channels(layer.num_features)} and gets {shape[1]}"
    return ""


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count != 1)}"
