"""Lowering what moves elements about, and what does nothing in eval mode."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from splitsec.cut.gradients import without_gradient
from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering.base import LOWERINGS, Call, Lower, Lowering, Shared, Tables
from splitsec.mpc.program.lowering.moving import moved


def _reshape(lowering: Lowering, call: Call) -> Shared:
    return lowering.reshape(call.name, call.first, lowering.shape_of(call))


def _same(_lowering: Lowering, call: Call) -> Any:
    return call.first


def _dropout(_lowering: Lowering, call: Call) -> Any:
    options = call.options("input p training inplace", p=0.5, training=True)
    if options["training"] and options["p"]:
        raise UnsupportedLayerError(
            f"'{call.name}' drops out at any time; use nn.Dropout or training=self.training, which stop in eval mode"
        )
    return options["input"]


def _stochastic_depth(_lowering: Lowering, call: Call) -> Any:
    # A residual branch is dropped in training only.
    if call.layer.training and call.layer.p:
        raise UnsupportedLayerError(f"layer '{call.name}' is in training mode; call eval() first")
    return call.first


def _numbers(call: Call, name: str) -> list[int]:
    """Dimensions given one by one or as one sequence."""
    options = call.kwargs.get(name, call.args[1:])
    options = options[0] if len(options) == 1 and isinstance(options[0], Sequence) else options
    return [int(number) for number in options]


def _permute(lowering: Lowering, call: Call) -> Shared:
    x = call.first
    dims = call.layer.dims if call.layer is not None else _numbers(call, "dims")
    return lowering.permute(call.name, x, [int(dim) % len(x.shape) for dim in dims])


def _transpose(lowering: Lowering, call: Call) -> Shared:
    x = call.first
    options = call.options("input dim0 dim1") if callable(call.target) else call.options("self dim0 dim1")
    order = list(range(len(x.shape)))
    first, second = int(options["dim0"]), int(options["dim1"])
    order[first], order[second] = order[second], order[first]
    return lowering.permute(call.name, x, order)


def _t(lowering: Lowering, call: Call) -> Shared:
    return lowering.permute(call.name, call.first, list(reversed(range(len(call.first.shape)))))


def _expand(lowering: Lowering, call: Call) -> Shared:
    return lowering.expand(call.name, call.first, lowering.shape_of(call))


def _repeat(lowering: Lowering, call: Call) -> Shared:
    x, times = call.first, _numbers(call, "repeats")
    output = lowering.reshape(call.name, x, (*[1] * (len(times) - len(x.shape)), *x.shape))
    for dim, count in enumerate(times):
        if count > 1:
            shape = [size * (count if at == dim else 1) for at, size in enumerate(output.shape)]
            output = lowering.emit("cat", call.name, (output,) * count, shape, dim=dim)
    return output


def _index(lowering: Lowering, call: Call) -> Any:
    source, sizes = call.args
    if not isinstance(source, Shared):
        if isinstance(sizes, Shared):
            raise UnsupportedLayerError(f"'{call.name}' looks up by a value on shares; no encrypted form for that")
        return source[sizes]
    parts = list(sizes) if isinstance(sizes, tuple) else [sizes]
    options = sum(part is not None and part is not Ellipsis for part in parts)
    missing = [slice(None)] * (len(source.shape) - options)
    if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
        at = next(index for index, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = missing
    else:
        parts += missing
    index: list[int] = []
    for size, part in zip(source.shape, [part for part in parts if part is not None], strict=True):
        if isinstance(part, slice):
            index += part.indices(size)
        elif isinstance(part, int):
            index += [part % size, part % size + 1, 1]
        elif len(parts) - 1 == sum(isinstance(part, slice) and part == slice(None) for part in parts):
            dim = next(at for at, index in enumerate(parts) if index is part)
            return _gathered(lowering, call, source, dim, part)
        else:
            raise UnsupportedLayerError(f"'{call.name}' takes elements by more than one list; take one at a time")
    return lowering.emit("index", call.name, (source,), lowering.shape_of(call), index=tuple(index))


def _gathered(lowering: Lowering, call: Call, x: Shared, dim: int, wanted: Any) -> Shared:
    flat = torch.as_tensor(wanted)
    if flat.dtype == torch.bool:
        flat = flat.nonzero().view(-1)
    if flat.dim() != 1:
        raise UnsupportedLayerError(f"'{call.name}' takes elements by a list of {flat.dim()} dimensions; give it one")
    index = tuple(int(index) % x.shape[dim] for index in flat.tolist())
    shape = [*x.shape[:dim], len(index), *x.shape[dim + 1 :]]
    return lowering.emit("gather", call.name, (x,), shape, dim=dim, index=index)


def _index_select(lowering: Lowering, call: Call) -> Shared:
    x, dim, index = call.args
    return _gathered(lowering, call, x, int(dim) % len(x.shape), index)


def _narrow(lowering: Lowering, call: Call) -> Shared:
    x, dim, start, length = call.args
    dim = int(dim) % len(x.shape)
    return lowering.narrow(call.name, x, dim, int(start) % x.shape[dim], int(length))


def _select(lowering: Lowering, call: Call) -> Shared:
    x, dim, index = call.args
    dim = int(dim) % len(x.shape)
    part = lowering.narrow(call.name, x, dim, int(index) % x.shape[dim], 1)
    return lowering.reshape(call.name, part, lowering.shape_of(call))


def _parts(lowering: Lowering, call: Call, x: Shared, dim: int, sizes: Sequence[int]) -> tuple[Shared, ...]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(lowering.narrow(call.name, x, dim, start, size))
        start += size
    return tuple(pieces)


def _chunk(lowering: Lowering, call: Call) -> tuple[Shared, ...]:
    options = call.options("input chunks dim", dim=0)
    x, dim = call.first, int(options["dim"]) % len(call.first.shape)
    size = -(-x.shape[dim] // int(options["chunks"]))
    return _parts(lowering, call, x, dim, _even(x.shape[dim], size))


def _split(lowering: Lowering, call: Call) -> tuple[Shared, ...]:
    options = call.options("tensor split_size_or_sections dim", dim=0)
    x, dim, size = call.first, int(options["dim"]) % len(call.first.shape), options["split_size_or_sections"]
    return _parts(lowering, call, x, dim, _even(x.shape[dim], size) if isinstance(size, int) else size)


def _even(length: int, size: int) -> list[int]:
    return [min(size, length - start) for start in range(0, length, size)]


def _unbind(lowering: Lowering, call: Call) -> tuple[Shared, ...]:
    options = call.options("input dim", dim=0)
    x, dim = call.first, int(options["dim"]) % len(call.first.shape)
    rest = [*x.shape[:dim], *x.shape[dim + 1 :]]
    ones = _parts(lowering, call, x, dim, [1] * x.shape[dim])
    return tuple(lowering.reshape(call.name, part, rest) for part in ones)


def _cat(lowering: Lowering, call: Call) -> Shared:
    options = call.options("tensors dim", dim=0)
    parts, dim = list(options["tensors"]), int(options["dim"])
    shape = lowering.shape_of(call)
    return lowering.emit(
        "cat", call.name, [on_shares(lowering, call, part, parts) for part in parts], shape, dim=dim % len(shape)
    )


def _stack(lowering: Lowering, call: Call) -> Shared:
    options = call.options("tensors dim", dim=0)
    parts, shape = list(options["tensors"]), lowering.shape_of(call)
    dim = int(options["dim"]) % len(shape)
    parts = [on_shares(lowering, call, part, parts) for part in parts]
    widened = [*parts[0].shape[:dim], 1, *parts[0].shape[dim:]]
    return lowering.emit("cat", call.name, [lowering.reshape(call.name, x, widened) for x in parts], shape, dim=dim)


def on_shares(lowering: Lowering, call: Call, value: Any, beside: Sequence[Any]) -> Shared:
    """Return a value on shares as it is.

    A constant of the server's as what is left when a value of its shape is cancelled.
    """
    if isinstance(value, Shared):
        return value
    known = next(value for value in beside if isinstance(value, Shared))
    constant = torch.as_tensor(value).detach().double()
    # Zero times one element of a value on shares, spread over the constant's shape: shares of zero.
    dims = len(known.shape)
    first = lowering.emit("index", call.name, (known,), (1,) * dims, index=(0, 1, 1) * dims)
    opposite = lowering.affine(call.name, first, -1.0)
    nothing = lowering.emit("add", call.name, (first, opposite), first.shape)
    nothing = lowering.reshape(call.name, nothing, (1,) * constant.dim())
    nothing = lowering.expand(call.name, nothing, constant.shape)
    return lowering.emit_weights("shift", call.name, nothing, constant.shape, torch.ones(1), constant)


def _pad(lowering: Lowering, call: Call) -> Shared:
    options = call.options("input pad mode value", mode="constant", value=None)
    x, ends = options["input"], tuple(int(number) for number in options["pad"])
    if options["mode"] != "constant":
        return moved(lowering, call)
    return _padded(lowering, call, x, ends, options["value"] or 0.0)


def _padded(lowering: Lowering, call: Call, x: Shared, ends: tuple[int, ...], value: float) -> Shared:
    """Pad with a number, which is added to zeros."""
    shape = lowering.shape_of(call)
    output = lowering.emit("pad", call.name, (x,), shape, padding=ends)
    if not value:
        return output
    border = F.pad(torch.zeros(x.shape), ends, value=value)
    return lowering.emit_weights("shift", call.name, output, shape, torch.ones(1), border)


def _pad_layer(lowering: Lowering, call: Call) -> Shared:
    ends = tuple(map(int, call.layer.padding))
    return _padded(lowering, call, call.first, ends, getattr(call.layer, "value", 0.0))


def _flip(lowering: Lowering, call: Call) -> Shared:
    output: Shared = call.first
    for dim in (number % len(call.first.shape) for number in _numbers(call, "dims")):
        index = tuple(reversed(range(output.shape[dim])))
        output = lowering.emit("gather", call.name, (output,), output.shape, dim=dim, index=index)
    return output


def _pixel_shuffle(lowering: Lowering, call: Call) -> Shared:
    factor = call.layer.upscale_factor if call.layer is not None else int(call.args[1])
    n, c, h, w = call.first.shape
    split = lowering.reshape(call.name, call.first, (n, c // factor**2, factor, factor, h, w))
    return lowering.reshape(
        call.name, lowering.permute(call.name, split, (0, 1, 4, 2, 5, 3)), (n, c // factor**2, h * factor, w * factor)
    )


def _cast(lowering: Lowering, call: Call) -> Shared:
    """Another precision of real numbers, which shares have none of."""
    lowering.shape_of(call)
    cast: Shared = call.first
    return cast


def _size(_lowering: Lowering, call: Call) -> Any:
    shape = torch.Size(call.first.shape)
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    return shape if dim is None else shape[dim]


def _attribute(lowering: Lowering, call: Call) -> Any:
    x, name = call.args
    if isinstance(x, tuple) and name in ("values", "indices"):
        # The largest of a dimension, and where it is, which nobody has.
        return x[("values", "indices").index(name)]
    known: dict[str, Callable[[], Any]] = {
        "shape": lambda: torch.Size(x.shape),
        "ndim": lambda: len(x.shape),
        "dtype": lambda: call.node.all_input_nodes[0].meta["dtype"],
        "device": lambda: torch.device("cpu"),
        "T": lambda: _t(lowering, call),
        "mT": lambda: lowering.transpose(call.name, x),
        "is_cuda": lambda: False,
        "requires_grad": lambda: False,
    }
    if name not in known:
        raise UnsupportedLayerError(f"'{call.name}' reads {name} of a value on shares; no encrypted form for that")
    return known[name]()


_MODULES: dict[type[nn.Module], Lower] = {
    nn.Flatten: _reshape,
    nn.Unflatten: _reshape,
    nn.Dropout: _same,
    nn.Dropout1d: _same,
    nn.Dropout2d: _same,
    nn.AlphaDropout: _same,
    nn.Identity: _same,
    nn.ZeroPad1d: _pad_layer,
    nn.ZeroPad2d: _pad_layer,
    nn.ConstantPad1d: _pad_layer,
    nn.ConstantPad2d: _pad_layer,
    nn.ConstantPad3d: _pad_layer,
    nn.PixelShuffle: _pixel_shuffle,
}
_FUNCTIONS: dict[Any, Lower] = {
    torch.flatten: _reshape,
    torch.reshape: _reshape,
    torch.squeeze: _reshape,
    torch.unsqueeze: _reshape,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.swapaxes: _transpose,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.stack: _stack,
    torch.chunk: _chunk,
    torch.split: _split,
    torch.unbind: _unbind,
    torch.narrow: _narrow,
    torch.select: _select,
    torch.index_select: _index_select,
    torch.flip: _flip,
    torch.t: _t,
    F.dropout: _dropout,
    F.dropout2d: _dropout,
    F.pad: _pad,
    F.pixel_shuffle: _pixel_shuffle,
    without_gradient: _same,
    operator.getitem: _index,
    getattr: _attribute,
}
_METHODS: dict[str, Lower] = {
    "flatten": _reshape,
    "unflatten": _reshape,
    "reshape": _reshape,
    "reshape_as": _reshape,
    "view": _reshape,
    "view_as": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "contiguous": _same,
    "clone": _same,
    "detach": _same,
    "float": _same,
    **dict.fromkeys(("to", "type", "type_as", "double", "half", "bfloat16", "cpu"), _cast),
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "t": _t,
    "expand": _expand,
    "expand_as": _expand,
    "repeat": _repeat,
    "chunk": _chunk,
    "split": _split,
    "unbind": _unbind,
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    "flip": _flip,
    "size": _size,
    "dim": lambda _lowering, call: len(call.first.shape),
    "numel": lambda _lowering, call: math.prod(call.first.shape),
}


# torchvision's, by name, since importing it takes seconds.
_NAMED: dict[str, Lower] = {"StochasticDepth": _stochastic_depth, "Permute": _permute}
LOWERINGS.register("shaping")(Tables(_MODULES, _FUNCTIONS, _METHODS, _NAMED))
