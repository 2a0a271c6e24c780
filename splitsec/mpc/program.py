"""A tail as a program on shares: what both parties run in step, without the weights.

The server compiles its tail for one input shape and sends the program to the client; the weights stay with the
server. Batch norm is folded into the layer before it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from splitsec.errors import MessageError, RangeError, UnsupportedLayerError
from splitsec.mpc.ring import PRECISION_BITS, check_range, real_limit

Shape: TypeAlias = tuple[int, ...]
OPS = ("linear", "conv2d", "relu", "max_pool2d", "avg_pool2d", "add", "reshape")
MAX_STEPS = 10_000


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation. Inputs are numbers of earlier values: 0 is the program's input, k the output of step k.

    `name` is the layer's own name, for messages; shapes include the batch dimension.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    shape: Shape
    weight: Shape = ()
    kernel: Shape = ()
    stride: Shape = (1, 1)
    padding: Shape = (0, 0)
    dilation: Shape = (1, 1)
    groups: int = 1


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tail's architecture for one input shape. `limit` bounds the input so that no layer can overflow."""

    input_shape: Shape
    steps: tuple[Step, ...]
    limit: float
    limited_by: str
    precision: int = PRECISION_BITS

    @property
    def output_shape(self) -> Shape:
        return self.steps[-1].shape if self.steps else self.input_shape


@dataclass(frozen=True)
class Weights:
    """Weight and bias of one step, float64; only the server has them."""

    weight: torch.Tensor
    bias: torch.Tensor


def check_program(program: Program) -> None:
    """Raise `MessageError` for a program that no compiler makes: what a client checks before it runs one."""
    if not 0 < program.precision < 31 or not program.limit > 0 or len(program.steps) > MAX_STEPS:
        raise MessageError("an impossible program")
    shapes = [program.input_shape]
    for number, step in enumerate(program.steps, 1):
        if step.op not in OPS:
            raise MessageError(f"the program has an unknown operation '{step.op[:32]}'")
        if not step.inputs or any(not 0 <= index < number for index in step.inputs):
            raise MessageError(f"step {number} of the program reads a value that is not there")
        if any(size < 1 for size in (*step.shape, *step.weight)) or math.prod(step.shape) > 1 << 26:
            raise MessageError(f"step {number} of the program has an impossible shape")
        shapes.append(step.shape)


def compile_tail(
    tail: fx.GraphModule, input_shape: Shape, *, precision: int = PRECISION_BITS
) -> tuple[Program, dict[int, Weights]]:
    """The program of a traced tail in eval mode, and its weights by step number.

    Args:
        tail: a `torch.fx.GraphModule` with one tensor input and one tensor output.
        input_shape: shape of the activation, batch dimension first.

    Raises:
        UnsupportedLayerError: a layer without an encrypted form, with its name.
        RangeError: a weight that is not finite or too large for fixed point, with its layer.
    """
    compiler = _Compiler(tail, precision)
    training = tail.training
    tail.eval()
    try:
        parameter = next(tail.parameters(), torch.empty(0))
        with torch.no_grad():
            ShapeProp(tail).propagate(torch.zeros(input_shape, dtype=parameter.dtype))
        compiler.run(input_shape)
    except (RuntimeError, IndexError) as error:
        shape = "x".join(map(str, input_shape))
        raise MessageError(f"the tail cannot take an activation of shape {shape}: {_first_line(error)}") from error
    finally:
        tail.train(training)
    steps = tuple(compiler.steps)
    limit, limited_by = _input_limit(steps, compiler.weights, precision)
    return Program(input_shape, steps, limit, limited_by, precision), compiler.weights


class _Compiler:
    def __init__(self, tail: fx.GraphModule, precision: int) -> None:
        self.tail = tail
        self.precision = precision
        self.steps: list[Step] = []
        self.weights: dict[int, Weights] = {}
        self.values: dict[fx.Node, int] = {}

    def run(self, input_shape: Shape) -> None:
        for node in self.tail.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = 0
            elif node.op == "output":
                self._check_output(node)
            elif node.op == "get_attr":
                raise UnsupportedLayerError(f"'{node.target}' is used outside a layer; no encrypted form for that yet")
            else:
                self.values[node] = self._lower(node)
        for number, held in self.weights.items():
            name = self.steps[number - 1].name
            check_range(held.weight, limit=real_limit(self.precision), what=f"the weight of layer '{name}'")
            check_range(held.bias, limit=real_limit(self.precision), what=f"the bias of layer '{name}'")

    def _check_output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or self.values.get(result) != len(self.steps):
            raise UnsupportedLayerError("the tail must return one tensor, its last value")

    def _lower(self, node: fx.Node) -> int:
        name = str(node.target) if node.op == "call_module" else node.name
        if node.op == "call_module":
            layer = self.tail.get_submodule(str(node.target))
            for kind, lower in _MODULES.items():
                if type(layer) is kind:
                    return lower(self, node, name, layer)
            described = type(layer).__name__
        else:
            target = node.target
            known = _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)
            if known is not None:
                return known(self, node, name)
            described = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        supported = ", ".join(sorted(kind.__name__ for kind in _MODULES))
        raise UnsupportedLayerError(
            f"layer '{name}' ({described}) has no encrypted form; move the cut behind it or use one of: {supported}"
        )

    def emit(self, op: str, name: str, node: fx.Node, inputs: tuple[int, ...], **attributes: Any) -> int:
        self.steps.append(Step(op, name, inputs, _shape(node), **attributes))
        return len(self.steps)

    def value(self, node: Any) -> int:
        if not isinstance(node, fx.Node) or node not in self.values:
            raise UnsupportedLayerError(f"'{node}' is not a value on shares; constants have no encrypted form yet")
        return self.values[node]


def _shape(node: fx.Node) -> Shape:
    return tuple(node.meta["tensor_meta"].shape)


def _pair(value: Any) -> Shape:
    return (int(value), int(value)) if isinstance(value, int) else tuple(int(part) for part in value)


def _linear(compiler: _Compiler, node: fx.Node, name: str, layer: nn.Linear) -> int:
    weight = layer.weight.detach().double()
    bias = torch.zeros(layer.out_features, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    source = node.args[0]
    number = compiler.emit("linear", name, node, (compiler.value(source),), weight=tuple(weight.shape))
    compiler.weights[number] = Weights(weight, bias)
    return number


def _conv2d(compiler: _Compiler, node: fx.Node, name: str, layer: nn.Conv2d) -> int:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnsupportedLayerError(f"layer '{name}' pads with '{layer.padding_mode}'; use numeric zero padding")
    weight = layer.weight.detach().double()
    bias = torch.zeros(layer.out_channels, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    number = compiler.emit(
        "conv2d",
        name,
        node,
        (compiler.value(node.args[0]),),
        weight=tuple(weight.shape),
        stride=_pair(layer.stride),
        padding=_pair(layer.padding),
        dilation=_pair(layer.dilation),
        groups=layer.groups,
    )
    compiler.weights[number] = Weights(weight, bias)
    return number


def _batch_norm(compiler: _Compiler, node: fx.Node, name: str, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> int:
    source = compiler.value(node.args[0])
    before = node.args[0]
    foldable = source in compiler.weights and isinstance(before, fx.Node) and len(before.users) == 1
    if not foldable or layer.running_mean is None or layer.running_var is None:
        raise UnsupportedLayerError(f"layer '{name}' (batch norm) can only follow a linear or convolution layer")
    held = compiler.weights[source]
    scale = (layer.running_var.detach().double() + layer.eps).rsqrt()
    shift = -layer.running_mean.detach().double() * scale
    if layer.affine:
        scale = scale * layer.weight.detach().double()
        shift = shift * layer.weight.detach().double() + layer.bias.detach().double()
    weight = held.weight * scale.view(-1, *[1] * (held.weight.dim() - 1))
    compiler.weights[source] = Weights(weight, held.bias * scale + shift)
    return source


def _relu(compiler: _Compiler, node: fx.Node, name: str, *_layer: nn.Module) -> int:
    return compiler.emit("relu", name, node, (compiler.value(node.args[0]),))


def _pool(compiler: _Compiler, node: fx.Node, name: str, options: Mapping[str, Any], op: str) -> int:
    kernel = _pair(options["kernel_size"])
    padding = _pair(options.get("padding", 0))
    plain = (
        not options.get("ceil_mode", False)
        and _pair(options.get("dilation", 1)) == (1, 1)
        and not options.get("return_indices", False)
        and options.get("divisor_override") is None
        and (padding == (0, 0) or op == "max_pool2d" or options.get("count_include_pad", True))
    )
    if not plain:
        raise UnsupportedLayerError(f"layer '{name}' pools with dilation, ceil_mode, indices or a divisor of its own")
    return compiler.emit(
        op,
        name,
        node,
        (compiler.value(node.args[0]),),
        kernel=kernel,
        stride=_pair(options.get("stride") or kernel),
        padding=padding,
    )


def _max_pool_layer(compiler: _Compiler, node: fx.Node, name: str, layer: nn.MaxPool2d) -> int:
    return _pool(compiler, node, name, vars(layer), "max_pool2d")


def _avg_pool_layer(compiler: _Compiler, node: fx.Node, name: str, layer: nn.AvgPool2d) -> int:
    return _pool(compiler, node, name, vars(layer), "avg_pool2d")


def _pool_function(op: str, names: tuple[str, ...]) -> Callable[[_Compiler, fx.Node, str], int]:
    def lower(compiler: _Compiler, node: fx.Node, name: str) -> int:
        options = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        return _pool(compiler, node, name, options, op)

    return lower


def _adaptive(compiler: _Compiler, node: fx.Node, name: str, *_layer: nn.Module) -> int:
    source: Any = node.args[0]
    before, after = _shape(source)[-2:], _shape(node)[-2:]
    if any(big % small for big, small in zip(before, after, strict=True)):
        raise UnsupportedLayerError(f"layer '{name}' pools {before} to {after}, which does not divide evenly")
    kernel = tuple(big // small for big, small in zip(before, after, strict=True))
    return compiler.emit("avg_pool2d", name, node, (compiler.value(source),), kernel=kernel, stride=kernel)


def _reshape(compiler: _Compiler, node: fx.Node, name: str, *_layer: nn.Module) -> int:
    return compiler.emit("reshape", name, node, (compiler.value(node.args[0]),))


def _same(compiler: _Compiler, node: fx.Node, _name: str, *_layer: nn.Module) -> int:
    return compiler.value(node.args[0])


def _add(compiler: _Compiler, node: fx.Node, name: str) -> int:
    if node.kwargs:
        raise UnsupportedLayerError(f"'{name}' adds with options; no encrypted form for that")
    return compiler.emit("add", name, node, tuple(compiler.value(value) for value in node.args[:2]))


_MODULES: dict[type[nn.Module], Callable[..., int]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool_layer,
    nn.AvgPool2d: _avg_pool_layer,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _reshape,
    nn.Dropout: _same,
    nn.Identity: _same,
}
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_FUNCTIONS: dict[Any, Callable[[_Compiler, fx.Node, str], int]] = {
    F.relu: _relu,
    torch.relu: _relu,
    F.max_pool2d: _pool_function("max_pool2d", _MAX_POOL),
    torch.max_pool2d: _pool_function("max_pool2d", _MAX_POOL),
    F.avg_pool2d: _pool_function("avg_pool2d", _AVG_POOL),
    F.adaptive_avg_pool2d: _adaptive,
    F.dropout: _same,
    torch.flatten: _reshape,
    torch.reshape: _reshape,
    torch.add: _add,
    operator.add: _add,
    operator.iadd: _add,
}
_METHODS: dict[str, Callable[[_Compiler, fx.Node, str], int]] = {
    "relu": _relu,
    "flatten": _reshape,
    "reshape": _reshape,
    "view": _reshape,
    "contiguous": _same,
    "add": _add,
}


def _input_limit(steps: tuple[Step, ...], weights: Mapping[int, Weights], precision: int) -> tuple[float, str]:
    """The largest power of two that no input may reach, and the layer that sets it.

    If the input's magnitude is below b, that of value k is below gain[k] * b + offset[k]; every such bound must stay
    below `real_limit`. The bound is a guarantee, not a measurement. Rounding it down to a power of two keeps what it
    tells the client about the weights to a few bits.
    """
    most = real_limit(precision) / 2
    bounds: list[tuple[float, float]] = [(1.0, 0.0)]
    limit, limited_by = most, "the input"
    for number, step in enumerate(steps, 1):
        gain = sum(bounds[index][0] for index in step.inputs)
        offset = sum(bounds[index][1] for index in step.inputs)
        if number in weights:
            held = weights[number]
            norm = held.weight.abs().flatten(1).sum(1).max().item()
            gain, offset = norm * gain, norm * offset + held.bias.abs().max().item()
        elif step.op == "avg_pool2d":
            # The window's sum is formed before it is divided.
            room = math.prod(step.kernel)
            if gain * room and (most / room - offset) / gain < limit:
                limit, limited_by = (most / room - offset) / gain, step.name
        bounds.append((gain, offset))
        if gain and (most - offset) / gain < limit:
            limit, limited_by = (most - offset) / gain, step.name
    if limit < 2.0**-precision:
        raise RangeError(
            f"layer '{limited_by}' can overflow the fixed-point range whatever the input; scale its weights down"
        )
    return 2.0 ** math.floor(math.log2(limit)), limited_by


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
