"""From a traced tail to a program: lowering, graph passes, and the bounds of every value.

Passes: batch norm is folded into the layer before it, and a ReLU before max pooling moves behind it. Average pooling
over a power of two is a local sum whose divisor is a shift of the scale. A truncation never stands alone if it can be
helped: products keep their doubled scale until the next opening, which truncates them (see `run`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from splitsec.errors import MessageError, UnsupportedLayerError
from splitsec.mpc.bounds import guaranteed_bounds, input_bits, largest_value, measured_bounds, range_checks
from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.linear import laid_out
from splitsec.mpc.program import Program, Reveal, Shape, Step, Weights, value_scales
from splitsec.mpc.ring import PRECISION_BITS, check_range, encode, real_limit

# What an activation may reach unless a session asks for more: beyond what normalised networks show, and small enough
# for narrow comparisons.
DEFAULT_LIMIT = 256.0


def compile_tail(
    tail: fx.GraphModule,
    input_shape: Shape,
    *,
    precision: int = PRECISION_BITS,
    limit: float = DEFAULT_LIMIT,
    calibration: torch.Tensor | None = None,
    reveal: Reveal = "logits",
    checked: bool = False,
    comparison: ComparisonKind = "tables",
) -> tuple[Program, dict[int, Weights]]:
    """The program of a traced tail in eval mode, and its weights by step number.

    Args:
        tail: a `torch.fx.GraphModule` with one tensor input and one tensor output.
        input_shape: shape of the activation, batch dimension first.
        limit: the magnitude that an activation may reach; a smaller one makes comparisons cheaper.
        calibration: activations of the same shape but for the batch dimension. Without them every layer's bound is a
            guarantee computed from the weights, which deep networks outgrow; with them it is the largest value
            measured, times `MARGIN`.
        reveal: `"label"` opens to the client the class of the largest value of each sample, and nothing else.
        checked: compare every layer's values with its bound when the program runs, and have the client raise if one
            is beyond.
        comparison: `"tables"`, or `"dcf"` for slow links: fewer rounds, more offline bytes and arithmetic.

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
    _fuse_relu_and_max_pool(compiler.steps, input_shape)
    if calibration is None:
        bounds, limit, limited_by = guaranteed_bounds(compiler.steps, compiler.weights, precision, limit)
    else:
        bounds, limited_by = measured_bounds(compiler.steps, compiler.weights, calibration, precision), ""
        limit = min(limit, 2.0 ** math.ceil(math.log2(bounds[0])))
    steps = list(compiler.steps)
    if reveal == "label":
        output = steps[-1].shape if steps else input_shape
        if len(output) != 2:
            raise UnsupportedLayerError(f"a label needs an output of samples by classes, not of shape {output}")
        steps.append(Step("argmax", "label", (len(steps),), output))
    steps = [msgspec.structs.replace(step, bits=input_bits(step, bounds)) for step in steps]
    checks = range_checks(compiler.steps, compiler.weights, bounds, precision) if checked else ()
    program = Program(input_shape, tuple(steps), limit, limited_by, precision, checks, comparison)
    return program, compiler.weights


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


def _relu(compiler: _Compiler, node: fx.Node, name: str, *layer: nn.Module) -> int:
    if getattr(layer[0], "inplace", False) if layer else node.kwargs.get("inplace") or True in node.args:
        compiler.refuse_in_place(node, name)
    return compiler.emit("relu", name, node, (compiler.value(node.args[0]),))


def _leaky_relu(compiler: _Compiler, node: fx.Node, name: str, *layer: nn.Module) -> int:
    options: dict[str, Any] = {**dict(zip(("negative_slope", "inplace"), node.args[1:], strict=False)), **node.kwargs}
    slope: float = getattr(layer[0], "negative_slope", 0.01) if layer else options.get("negative_slope", 0.01)
    if getattr(layer[0], "inplace", False) if layer else options.get("inplace", False):
        compiler.refuse_in_place(node, name)
    if not -1 <= slope <= 1:
        raise UnsupportedLayerError(f"layer '{name}' has slope {slope}; give it one between -1 and 1")
    return compiler.emit("leaky_relu", name, node, (compiler.value(node.args[0]),), slope=float(slope))


def _hardtanh(compiler: _Compiler, node: fx.Node, name: str, *layer: nn.Module) -> int:
    names = ("inplace",) if node.target is F.relu6 else ("min_val", "max_val", "inplace")
    options: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    low, high = (0.0, 6.0) if node.target is F.relu6 else (options.get("min_val", -1.0), options.get("max_val", 1.0))
    if layer:
        known: Any = layer[0]
        low, high, options = known.min_val, known.max_val, {"inplace": known.inplace}
    if options.get("inplace", False):
        compiler.refuse_in_place(node, name)
    return compiler.emit("hardtanh", name, node, (compiler.value(node.args[0]),), low=float(low), high=float(high))


def _pool(compiler: _Compiler, node: fx.Node, name: str, options: Mapping[str, Any], op: str) -> int:
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
    source: Any = node.args[0]
    if _shape(source)[:1] != _shape(node)[:1]:
        raise UnsupportedLayerError(f"'{name}' mixes the samples of a batch; keep the first dimension")
    return compiler.emit("reshape", name, node, (compiler.value(node.args[0]),))


def _crypten(op: str) -> Callable[..., int]:
    def lower(compiler: _Compiler, node: fx.Node, name: str, *layer: nn.Module) -> int:
        dim = getattr(layer[0], "dim", -1) if layer else -1
        return compiler.emit(op, name, node, (compiler.value(node.args[0]),), dim=-1 if dim is None else dim)

    return lower


def _dropout(compiler: _Compiler, node: fx.Node, name: str) -> int:
    options = {**dict(zip(("p", "training"), node.args[1:], strict=False)), **node.kwargs}
    if options.get("training", True) and options.get("p", 0.5):
        raise UnsupportedLayerError(f"'{name}' drops out at any time; use nn.Dropout, which stops in eval mode")
    return compiler.value(node.args[0])


def _same(compiler: _Compiler, node: fx.Node, _name: str, *_layer: nn.Module) -> int:
    return compiler.value(node.args[0])


def _add(compiler: _Compiler, node: fx.Node, name: str) -> int:
    if node.target is operator.iadd:
        compiler.refuse_in_place(node, name)
    if node.kwargs:
        raise UnsupportedLayerError(f"'{name}' adds with options; no encrypted form for that")
    return compiler.emit("add", name, node, tuple(compiler.value(value) for value in node.args[:2]))


def _cat(compiler: _Compiler, node: fx.Node, name: str) -> int:
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
_FUNCTIONS: dict[Any, Callable[[_Compiler, fx.Node, str], int]] = {
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
_METHODS: dict[str, Callable[[_Compiler, fx.Node, str], int]] = {
    "relu": _relu,
    "flatten": _reshape,
    "reshape": _reshape,
    "view": _reshape,
    "contiguous": _same,
    "add": _add,
}


def _users(steps: list[Step], number: int) -> list[int]:
    return [index for index, step in enumerate(steps, 1) if number in step.inputs]


def _fuse_relu_and_max_pool(steps: list[Step], input_shape: Shape) -> None:
    # max(relu(x)) = relu(max(x)) = max(x, 0): one step, in the place of the later one; the other becomes a mere name.
    for number, step in enumerate(steps, 1):
        users = _users(steps, number)
        if len(users) != 1 or {step.op, steps[users[0] - 1].op} != {"relu", "max_pool2d"}:
            continue
        later = steps[users[0] - 1]
        pool = step if step.op == "max_pool2d" else later
        steps[users[0] - 1] = msgspec.structs.replace(pool, shape=later.shape, zero=True)
        before = steps[step.inputs[0] - 1].shape if step.inputs[0] else input_shape
        steps[number - 1] = msgspec.structs.replace(
            step, op="reshape", shape=before, kernel=(), stride=(1, 1), padding=(0, 0)
        )
        steps[users[0] - 1] = msgspec.structs.replace(steps[users[0] - 1], inputs=(number,))


def encode_weights(program: Program, weights: Mapping[int, Weights]) -> dict[int, Weights]:
    """Weights in the ring, as `run_program` takes them."""
    found, scales = {}, value_scales(program.steps, program.precision)
    for number, held in weights.items():
        step = program.steps[number - 1]
        bias = torch.round(held.bias * 2.0 ** scales[number]).to(torch.int64)
        shape = (1, -1, 1, 1) if step.op == "conv2d" else (-1,)
        found[number] = Weights(laid_out(encode(held.weight, program.precision)), bias.view(shape))
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
