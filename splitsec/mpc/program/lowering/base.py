"""Walking a traced tail: values on shares become steps, everything else is computed at once.

Sizes, constants and weights used outside layers (`x.size(0)`, positions, class tokens) are no secrets that need shares:
the server works them out while it compiles. Constants it keeps to itself; they enter as weights of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from splitsec.cut.in_place import AtenOperation
from splitsec.cut.mode_switch import ByMode
from splitsec.errors import UnsupportedLayerError, first_line
from splitsec.mpc.program.lowering.advice import UNDONE, refusal
from splitsec.mpc.program.lowering.inside import graph_of, is_own
from splitsec.mpc.program.program import Shape, Step, Weights
from splitsec.registry import Registry

# What stands for minus infinity in a mask: beyond it the exponential's broken line is zero.
MASKED = -65536.0


@dataclass(frozen=True)
class Shared:
    """A value on shares: its number in the program, and its shape."""

    number: int
    shape: Shape


@dataclass(frozen=True)
class Call:
    """A node of the graph with its arguments: values on shares as `Shared`, all others as they are.

    `shape` is that of the result where the node has several, of which the first is taken.
    """

    node: fx.Node
    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    layer: Any = None
    shape: Shape | None = None

    def options(self, names: str, **defaults: Any) -> dict[str, Any]:
        """Arguments by name, those that were not given by their default; `names` are the positional ones in order.

        Raises:
            UnsupportedLayerError: an argument of another name, which would change the result.
        """
        options = {**dict(zip(names.split(), self.args, strict=False)), **self.kwargs}
        unknown = [name for name in options if name not in names.split()]
        if unknown or len(self.args) > len(names.split()):
            raise UnsupportedLayerError(f"'{self.name}' has no encrypted form with {', '.join(unknown) or 'so much'}")
        return {**defaults, **options}

    def schema_options(self) -> dict[str, Any]:
        """Return the arguments of an ATen operation by their names, those that were not given by their default."""
        options = {}
        for at, argument in enumerate(self.target._schema.arguments):
            value = self.kwargs.get(argument.name, argument.default_value)
            options[argument.name] = self.args[at] if at < len(self.args) else value
        return options

    @property
    def first(self) -> Any:
        """Return the first argument, which torch calls input, self or x."""
        return self.args[0] if self.args else self.kwargs[next(iter(self.kwargs))]


Lower = Callable[["Lowering", Call], Any]


@dataclass(frozen=True)
class Tables:
    """What stands for what.

    By type of module, by function, by name of a tensor's method, by name of a layer of torchvision.ops, and by name of
    an ATen operation.
    """

    modules: Mapping[type[nn.Module], Lower]
    functions: Mapping[Any, Lower] = field(default_factory=dict)
    methods: Mapping[str, Lower] = field(default_factory=dict)
    torchvision: Mapping[str, Lower] = field(default_factory=dict)
    operations: Mapping[str, Lower] = field(default_factory=dict)


# Of one kind of layers each.
LOWERINGS: Registry[Tables] = Registry("set of layers", package="splitsec.mpc.program.lowering")


def all_tables() -> Tables:
    """Return what stands for what, of all kinds of layers together."""
    everything = list(LOWERINGS)
    return Tables(
        {kind: lower for tables in everything for kind, lower in tables.modules.items()},
        {function: lower for tables in everything for function, lower in tables.functions.items()},
        {name: lower for tables in everything for name, lower in tables.methods.items()},
        {name: lower for tables in everything for name, lower in tables.torchvision.items()},
        {name: lower for tables in everything for name, lower in tables.operations.items()},
    )


class Lowering:
    """Turns the nodes of a traced tail into steps and weights, one by one, in the order of the graph."""

    def __init__(self, tail: fx.GraphModule, precision: int, tables: Tables) -> None:
        self.tail = tail
        self.precision = precision
        self.steps: list[Step] = []
        self.weights: dict[int, Weights] = {}
        self.values: dict[fx.Node, Any] = {}
        # Numbers of the values that are 0 or 1.
        self._truths: set[int] = set()
        self._tables = tables
        self._prefix = ""

    def run(self, input_shape: Shape) -> None:
        """Lower the whole graph, whose nodes know their shapes (`ShapeProp`)."""
        for node in self.tail.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = Shared(0, tuple(input_shape))
            elif node.op == "output":
                self._finish(node, input_shape)
            elif node.op == "get_attr":
                self.values[node] = self._attribute(str(node.target))
            else:
                self.values[node] = self._node(node)

    def _attribute(self, path: str) -> Any:
        value: Any = self.tail
        for part in path.split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, torch.Tensor) else value

    def _finish(self, node: fx.Node, input_shape: Shape) -> None:
        result = fx.map_arg(node.args[0], self.values.__getitem__)
        if not isinstance(result, Shared):
            raise UnsupportedLayerError("the tail must return one tensor that depends on its input")
        if self.is_truth(result):
            raise UnsupportedLayerError(
                "a result of truth values has no encrypted form; return real numbers, such as (x > 0).float()"
            )
        if result.shape[:1] != tuple(input_shape[:1]):
            raise UnsupportedLayerError("the tail's output mixes the samples of a batch; keep the first dimension")
        if result.number != len(self.steps):
            # What comes after it is not used: its value goes last.
            self.emit("reshape", "output", (result,), result.shape)

    def _node(self, node: fx.Node) -> Any:
        args = fx.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, self.values.__getitem__)
        layer = self.tail.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not _holds_shared((args, kwargs)):
            try:
                return self._compute(node, args, kwargs, layer)
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise UnsupportedLayerError(
                    f"'{node.name}' takes what has no encrypted form, such as the weights of attention: "
                    f"{first_line(error)}"
                ) from error
        name, target = self._prefix + (str(node.target) if layer is not None else node.name), node.target
        if isinstance(layer, ByMode):
            target, (args, kwargs), layer = layer.target, layer.in_eval(args), None
        if isinstance(target, AtenOperation):
            name = operation_path(node)
        call = Call(node, name, target, args, kwargs, layer)
        lower, described = self._lowering_of(layer, target)
        if lower is None:
            if layer is not None and is_own(layer) and len(args) == 1 and not kwargs and isinstance(args[0], Shared):
                return self._inside(call)
            raise UnsupportedLayerError(refusal(name, described, self.tail, node))
        if layer is not None:
            _check_hooks(layer, name, described)
        try:
            return self._noted(node, lower(self, call))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Arguments that no lowering expected; nothing has been sent to anybody yet.
            raise UnsupportedLayerError(
                f"layer '{name}' ({described}) has no encrypted form with these arguments: {first_line(error)}"
            ) from error

    def _noted(self, node: fx.Node, result: Any) -> Any:
        """Note a truth value as such."""
        if isinstance(result, Shared) and node.meta.get("dtype") == torch.bool:
            self._truths.add(result.number)
        return result

    def is_truth(self, value: Any) -> bool:
        """Say whether a value on shares is a truth value: 0 or 1."""
        return isinstance(value, Shared) and value.number in self._truths

    def _lowering_of(self, layer: nn.Module | None, target: Any) -> tuple[Lower | None, str]:
        """Return what lowers a layer, a method of a tensor or a function, if anything does, and what it is called."""
        if layer is not None:
            # A parametrised layer (torch.nn.utils.parametrizations) is its own kind with a weight that is computed.
            kind = type(layer).__bases__[0] if is_parametrized(layer) else type(layer)
            lower = self._tables.modules.get(kind)
            if lower is None and type(layer).__module__.startswith("torchvision.ops."):
                lower = self._tables.torchvision.get(kind.__name__)
            return lower, kind.__name__
        if isinstance(target, AtenOperation):
            name = target._schema.name.partition("::")[2]
            # What works in place gives the same.
            plain = name.rstrip("_")
            return self._tables.operations.get(name) or self._tables.operations.get(plain), name
        if isinstance(target, str):
            return self._tables.methods.get(target), f"Tensor.{target}"
        return self._tables.functions.get(target), getattr(target, "__name__", str(target))

    def _inside(self, call: Call) -> Any:
        """Return what a layer of a user's own does in eval mode."""
        dtype = call.node.all_input_nodes[0].meta["dtype"]
        inner = graph_of(call.layer, call.name, call.first.shape, dtype)
        outer, self.tail = self.tail, inner
        prefix, self._prefix = self._prefix, f"{call.name}."
        result: Any = None
        try:
            for node in inner.graph.nodes:
                if node.op == "placeholder":
                    self.values[node] = call.first
                elif node.op == "output":
                    result = fx.map_arg(node.args[0], self.values.__getitem__)
                elif node.op == "get_attr":
                    self.values[node] = self._attribute(str(node.target))
                else:
                    self.values[node] = self._node(node)
        finally:
            self.tail, self._prefix = outer, prefix
        return result

    def _compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], layer: nn.Module | None) -> Any:
        if isinstance(node.target, AtenOperation) and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise UnsupportedLayerError(
                f"'{operation_path(node)}' draws random numbers in eval mode, which every prediction would share; "
                "leave it out in eval mode"
            )
        with torch.no_grad():
            if layer is not None:
                return layer(*args, **kwargs)
            if isinstance(node.target, str):
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)

    def lower_as(self, target: Any, call: Call) -> Any:
        """Lower a call as that of a function, or of a method by its name, that takes the same arguments."""
        lower, described = self._lowering_of(None, target)
        if lower is None:
            raise UnsupportedLayerError(refusal(call.name, described, self.tail, call.node))
        return lower(self, call)

    def shape_of(self, call: Call, *, truth: bool = False) -> Shape:
        """Shape of a node's result, which must be a tensor of real numbers, or of truth values that are moved.

        Args:
            truth: the call makes truth values.
        """
        if call.shape is not None:
            return call.shape
        shape, dtype = call.node.meta.get("shape"), call.node.meta.get("dtype")
        if shape is None or dtype is None:
            raise UnsupportedLayerError(f"'{call.name}' makes several values or none; shares stand for one tensor")
        if dtype == torch.bool:
            truth = truth or (self.is_truth(call.first) and _name(call.target) not in _COUNTED)
        if not dtype.is_floating_point and not truth:
            raise UnsupportedLayerError(f"'{call.name}' makes a {dtype}; shares stand for real numbers")
        return tuple(shape)

    def emit(self, op: str, name: str, inputs: Sequence[Shared], shape: Sequence[int], **attributes: Any) -> Shared:
        """Add a step; its value."""
        for value in inputs:
            if not isinstance(value, Shared):
                kind = type(value).__name__
                raise UnsupportedLayerError(
                    f"'{name}' takes a {kind} where a value on shares is due; no encrypted form for that"
                )
        self.steps.append(Step(op, name, tuple(value.number for value in inputs), tuple(shape), **attributes))
        return Shared(len(self.steps), tuple(shape))

    def emit_weights(
        self,
        op: str,
        name: str,
        x: Shared,
        shape: Sequence[int],
        weight: torch.Tensor,
        bias: torch.Tensor,
        **attributes: Any,
    ) -> Shared:
        """Add a step with weights of the server's; its value."""
        output = self.emit(op, name, (x,), shape, weight=tuple(weight.shape), **attributes)
        self.weights[output.number] = Weights(_real(weight), _real(bias))
        return output

    def affine(self, name: str, x: Shared, factor: float, offset: float = 0.0) -> Shared:
        """factor * x + offset, both public. Of several in a row one is made, so that small factors lose no digits."""
        before = self.steps[x.number - 1] if isinstance(x, Shared) and x.number else None
        if before is not None and before.op == "affine":
            source = Shared(before.inputs[0], x.shape)
            return self._affine(name, source, factor * before.factor, factor * before.offset + offset)
        return self._affine(name, x, factor, offset)

    def _affine(self, name: str, x: Shared, factor: float, offset: float) -> Shared:
        if not math.isfinite(factor) or not math.isfinite(offset):
            raise UnsupportedLayerError(f"'{name}' computes with {factor} and {offset}, which are not finite")
        return self.emit("affine", name, (x,), x.shape, factor=factor, offset=offset)

    def reshape(self, name: str, x: Shared, shape: Sequence[int]) -> Shared:
        """Return the same elements in another shape."""
        return x if x.shape == tuple(shape) else self.emit("reshape", name, (x,), shape)

    def permute(self, name: str, x: Shared, order: Sequence[int]) -> Shared:
        """Return the dimensions in another order."""
        if tuple(order) == tuple(range(len(order))):
            return x
        return self.emit("permute", name, (x,), [x.shape[dim] for dim in order], index=tuple(order))

    def transpose(self, name: str, x: Shared) -> Shared:
        """Return the last two dimensions exchanged."""
        dims = len(x.shape)
        return self.permute(name, x, [*range(dims - 2), dims - 1, dims - 2])

    def narrow(self, name: str, x: Shared, dim: int, start: int, length: int) -> Shared:
        """`length` elements of one dimension."""
        if (start, length) == (0, x.shape[dim]):
            return x
        index = [part for size in x.shape for part in (0, size, 1)]
        index[3 * dim : 3 * dim + 2] = [start, start + length]
        shape = [*x.shape[:dim], length, *x.shape[dim + 1 :]]
        return self.emit("index", name, (x,), shape, index=tuple(index))

    def expand(self, name: str, x: Shared, shape: Sequence[int]) -> Shared:
        """Repeated along dimensions of size one, and of those that it lacks in front."""
        x = self.reshape(name, x, (*[1] * (len(shape) - len(x.shape)), *x.shape))
        return x if x.shape == tuple(shape) else self.emit("expand", name, (x,), shape)


def operation_path(node: fx.Node) -> str:
    """Return what an exported operation is called: its layer's path, or its name in the module around it."""
    stack = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
    path, kind = stack[-1]
    if path and str(kind).startswith("torch.nn."):
        return str(path)
    return f"{path}.{node.name}" if path else node.name


# What makes no truth value of truth values' shares.
_COUNTED = ("add", "sub", "iadd", "isub", "add_", "sub_")


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", "")).partition(".")[0]


def _real(constant: torch.Tensor) -> torch.Tensor:
    constant = constant.detach()
    return constant if constant.is_floating_point() else constant.double()


def _holds_shared(value: Any) -> bool:
    if isinstance(value, Shared):
        return True
    if isinstance(value, (tuple, list)):
        return any(map(_holds_shared, value))
    if isinstance(value, Mapping):
        return any(map(_holds_shared, value.values()))
    if isinstance(value, slice):
        return any(map(_holds_shared, (value.start, value.stop, value.step)))
    return False


def _check_hooks(layer: nn.Module, name: str, described: str) -> None:
    """Raise `UnsupportedLayerError` for a layer with a hook."""
    for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values()):
        undone = UNDONE.get(type(hook).__name__)
        what = f"undo it, which keeps the weight: {undone}" if undone else "remove it"
        raise UnsupportedLayerError(f"layer '{name}' ({described}) has a hook, which nobody could run; {what}")
