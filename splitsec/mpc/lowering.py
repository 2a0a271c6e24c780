"""Lowering: which steps stand for which layers and functions of torch.

A layer without an encrypted form is refused by name, with what could take its place. Batch norm is folded into the
layer before it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.bounds import largest_value
from splitsec.mpc.program import Shape, Step, Weights
from splitsec.mpc.ring import check_range, real_limit


class Lowering:
    """Turns the nodes of a traced tail into steps and weights, one by one, in the order of the graph."""

    def __init__(self, tail: fx.GraphModule, precision: int) -> None:
        self.tail = tail
        self.precision = precision
        self.steps: list[Step] = []
        self.weights: dict[int, Weights] = {}
        self.values: dict[fx.Node, int] = {}

    def run(self) -> None:
        """Lower the whole graph, whose nodes know their shapes (`ShapeProp`)."""
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
            check_range(held.bias, limit=largest_value(self.precision), what=f"the bias of layer '{name}'")

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

    def refuse_in_place(self, node: fx.Node, name: str) -> None:
        """Refuse an operation that overwrites a value which something later still reads."""
        order = {other: index for index, other in enumerate(self.tail.graph.nodes)}
        aliases = [node.args[0]]
        for alias in aliases:
            if not isinstance(alias, fx.Node):
                continue
            if any(user is not node and order[user] > order[node] for user in alias.users):
                raise UnsupportedLayerError(f"'{name}' works in place on a value that is used again; use inplace=False")
            kept = isinstance(alias.target, str) and alias.op == "call_method"
            if alias.op == "call_module" and isinstance(self.tail.get_submodule(str(alias.target)), _VIEWS):
                kept = True
            if kept or alias.target in (torch.flatten, torch.reshape):
                aliases.extend(alias.all_input_nodes)

    def emit(self, op: str, name: str, node: fx.Node, inputs: tuple[int, ...], **attributes: Any) -> int:
        if not node.meta["tensor_meta"].dtype.is_floating_point:
            raise UnsupportedLayerError(
                f"'{name}' makes a {node.meta['tensor_meta'].dtype}; shares stand for real numbers"
            )
        self.steps.append(Step(op, name, inputs, _shape(node), **attributes))
        return len(self.steps)

    def value(self, node: Any) -> int:
        if not isinstance(node, fx.Node) or node not in self.values:
            raise UnsupportedLayerError(f"'{node}' is not a value on shares; constants have no encrypted form yet")
        return self.values[node]


def _shape(node: fx.Node) -> Shape:
    return tuple(node.meta["tensor_meta"].shape)


def _pair(value: Any) -> Shape:
    parts = (int(value),) if isinstance(value, int) else tuple(int(part) for part in value)
    return parts * 2 if len(parts) == 1 else parts


def _linear(compiler: Lowering, node: fx.Node, name: str, layer: nn.Linear) -> int:
    weight = layer.weight.detach().double()
    bias = torch.zeros(layer.out_features, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    source = node.args[0]
    number = compiler.emit("linear", name, node, (compiler.value(source),), weight=tuple(weight.shape))
    compiler.weights[number] = Weights(weight, bias)
    return number


def _conv2d(compiler: Lowering, node: fx.Node, name: str, layer: nn.Conv2d) -> int:
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


def _batch_norm(compiler: Lowering, node: fx.Node, name: str, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> int:
    source = compiler.value(node.args[0])
    # Whoever else uses the layer's output, directly or through an identity, wants it without the norm.
    users = [user for other, value in compiler.values.items() if value == source for user in other.users]
    alone = len([user for user in users if compiler.values.get(user) != source]) == 1
    dims = 4 if isinstance(layer, nn.BatchNorm2d) else 2
    foldable = source in compiler.weights and alone and len(_shape(node)) == dims
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


def _relu(compiler: Lowering, node: fx.Node, name: str, *layer: nn.Module) -> int:
    if getattr(layer[0], "inplace", False) if layer else node.kwargs.get("inplace") or True in node.args:
        compiler.refuse_in_place(node, name)
    return compiler.emit("relu", name, node, (compiler.value(node.args[0]),))


def _leaky_relu(compiler: Lowering, node: fx.Node, name: str, *layer: nn.Module) -> int:
    options: dict[str, Any] = {**dict(zip(("negative_slope", "inplace"), node.args[1:], strict=False)), **node.kwargs}
    slope: float = getattr(layer[0], "negative_slope", 0.01) if layer else options.get("negative_slope", 0.01)
    if getattr(layer[0], "inplace", False) if layer else options.get("inplace", False):
        compiler.refuse_in_place(node, name)
    if not -1 <= slope <= 1:
        raise UnsupportedLayerError(f"layer '{name}' has slope {slope}; give it one between -1 and 1")
    return compiler.emit("leaky_relu", name, node, (compiler.value(node.args[0]),), slope=float(slope))


def _hardtanh(compiler: Lowering, node: fx.Node, name: str, *layer: nn.Module) -> int:
    names = ("inplace",) if node.target is F.relu6 else ("min_val", "max_val", "inplace")
    options: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    low, high = (0.0, 6.0) if node.target is F.relu6 else (options.get("min_val", -1.0), options.get("max_val", 1.0))
    if layer:
        known: Any = layer[0]
        low, high, options = known.min_val, known.max_val, {"inplace": known.inplace}
    if options.get("inplace", False):
        compiler.refuse_in_place(node, name)
    return compiler.emit("hardtanh", name, node, (compiler.value(node.args[0]),), low=float(low), high=float(high))


def _pool(compiler: Lowering, node: fx.Node, name: str, options: Mapping[str, Any], op: str) -> int:
    if len(_shape(node)) != 4:
        raise UnsupportedLayerError(
            f"layer '{name}' pools {len(_shape(node))} dimensions; give it batch, channels and two"
        )
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


def _max_pool_layer(compiler: Lowering, node: fx.Node, name: str, layer: nn.MaxPool2d) -> int:
    return _pool(compiler, node, name, vars(layer), "max_pool2d")


def _avg_pool_layer(compiler: Lowering, node: fx.Node, name: str, layer: nn.AvgPool2d) -> int:
    return _pool(compiler, node, name, vars(layer), "avg_pool2d")


def _pool_function(op: str, names: tuple[str, ...]) -> Callable[[Lowering, fx.Node, str], int]:
    def lower(compiler: Lowering, node: fx.Node, name: str) -> int:
        options = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        return _pool(compiler, node, name, options, op)

    return lower


def _adaptive(compiler: Lowering, node: fx.Node, name: str, *_layer: nn.Module) -> int:
    source: Any = node.args[0]
    before, after = _shape(source)[-2:], _shape(node)[-2:]
    if any(big % small for big, small in zip(before, after, strict=True)):
        raise UnsupportedLayerError(f"layer '{name}' pools {before} to {after}, which does not divide evenly")
    kernel = tuple(big // small for big, small in zip(before, after, strict=True))
    return compiler.emit("avg_pool2d", name, node, (compiler.value(source),), kernel=kernel, stride=kernel)


def _reshape(compiler: Lowering, node: fx.Node, name: str, *_layer: nn.Module) -> int:
    source: Any = node.args[0]
    if _shape(source)[:1] != _shape(node)[:1]:
        raise UnsupportedLayerError(f"'{name}' mixes the samples of a batch; keep the first dimension")
    return compiler.emit("reshape", name, node, (compiler.value(node.args[0]),))


def _crypten(op: str) -> Callable[..., int]:
    def lower(compiler: Lowering, node: fx.Node, name: str, *layer: nn.Module) -> int:
        dim = getattr(layer[0], "dim", -1) if layer else -1
        return compiler.emit(op, name, node, (compiler.value(node.args[0]),), dim=-1 if dim is None else dim)

    return lower


def _dropout(compiler: Lowering, node: fx.Node, name: str) -> int:
    options = {**dict(zip(("p", "training"), node.args[1:], strict=False)), **node.kwargs}
    if options.get("training", True) and options.get("p", 0.5):
        raise UnsupportedLayerError(f"'{name}' drops out at any time; use nn.Dropout, which stops in eval mode")
    return compiler.value(node.args[0])


def _same(compiler: Lowering, node: fx.Node, _name: str, *_layer: nn.Module) -> int:
    return compiler.value(node.args[0])


def _add(compiler: Lowering, node: fx.Node, name: str) -> int:
    if node.target is operator.iadd:
        compiler.refuse_in_place(node, name)
    if node.kwargs:
        raise UnsupportedLayerError(f"'{name}' adds with options; no encrypted form for that")
    return compiler.emit("add", name, node, tuple(compiler.value(value) for value in node.args[:2]))


def _cat(compiler: Lowering, node: fx.Node, name: str) -> int:
    parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
    dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    dim = dim + len(_shape(node)) if dim < 0 else dim
    if dim == 0:
        raise UnsupportedLayerError(f"'{name}' joins along the batch; give it a later dimension")
    return compiler.emit("cat", name, node, tuple(compiler.value(part) for part in parts), dim=dim)


_MODULES: dict[type[nn.Module], Callable[..., int]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Hardtanh: _hardtanh,
    nn.ReLU6: _hardtanh,
    nn.Sigmoid: _crypten("sigmoid"),
    nn.Tanh: _crypten("tanh"),
    nn.Softmax: _crypten("softmax"),
    nn.MaxPool2d: _max_pool_layer,
    nn.AvgPool2d: _avg_pool_layer,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _reshape,
    nn.Dropout: _same,
    nn.Identity: _same,
}
_VIEWS = (nn.Flatten, nn.Identity, nn.Dropout)
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_FUNCTIONS: dict[Any, Callable[[Lowering, fx.Node, str], int]] = {
    F.relu: _relu,
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    F.relu6: _hardtanh,
    torch.sigmoid: _crypten("sigmoid"),
    torch.tanh: _crypten("tanh"),
    torch.relu: _relu,
    F.max_pool2d: _pool_function("max_pool2d", _MAX_POOL),
    torch.max_pool2d: _pool_function("max_pool2d", _MAX_POOL),
    F.avg_pool2d: _pool_function("avg_pool2d", _AVG_POOL),
    F.adaptive_avg_pool2d: _adaptive,
    F.dropout: _dropout,
    torch.flatten: _reshape,
    torch.reshape: _reshape,
    torch.add: _add,
    torch.cat: _cat,
    torch.concat: _cat,
    operator.add: _add,
    operator.iadd: _add,
}
_METHODS: dict[str, Callable[[Lowering, fx.Node, str], int]] = {
    "relu": _relu,
    "flatten": _reshape,
    "reshape": _reshape,
    "view": _reshape,
    "contiguous": _same,
    "add": _add,
}
