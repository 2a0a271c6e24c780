"""Tracing a model with torch.export, which takes models that torch.fx refuses.

torch.fx runs a forward on stand-ins for values, so that whatever decides by a value's shape stops it, as Hugging Face's
models do. torch.export (https://docs.pytorch.org/docs/stable/export.html) runs it on fake tensors that have shapes, and
records ATen operations, each with the module that it was called in. All sizes but the batch's become constants.
"""

from __future__ import annotations

import logging
import operator
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import fx, nn

from splitsec.cut.in_place import AtenOperation, changes_attribute
from splitsec.cut.packing import Row
from splitsec.cut.place import place_of_error, place_of_trace
from splitsec.cut.results import one_result
from splitsec.errors import CutError, first_line

# A batch of one would become a constant.
_LEAST_ROWS = 2
# Where torch.export puts its own advice, which is about torch.export.
_ADVICE = re.compile(r"\s*(?:Suggested fixes|For more information|The following call|Here's the|User Stack)")


@dataclass(frozen=True)
class ExportedGraph:
    """What a model does in one mode.

    Attributes:
        graph: with parameters, buffers and constants as `get_attr` nodes, one placeholder, one result.
        attributes: the values of those nodes, by their target.
        constants: those that the model has not by itself.
    """

    graph: fx.Graph
    attributes: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]


def export_graph(model: nn.Module, sample: torch.Tensor) -> ExportedGraph:
    """Export what a model does in its present mode with an input like `sample` (N, ...), for any number of rows.

    Raises:
        CutError: torch.export refuses it (with its reason and the user's line), or it does not return one tensor.
    """
    rows = torch.cat([sample] * _LEAST_ROWS)[: max(len(sample), _LEAST_ROWS)]
    program = _exported(model, rows)
    new, taken = fx.Graph(), _Taken({}, {}, {})
    for spec in program.graph_signature.input_specs:
        _take_input(new, program, spec, taken)
    result: Any = None
    for node in program.graph.nodes:
        if node.op == "output":
            outputs = [taken.copies.get(value, value) for value in node.args[0]]
            result = program.call_spec.out_spec.unflatten(outputs)
        elif node.op != "placeholder":
            _copy(new, program.graph_module, node, taken, grad=True)
    new.output(one_result(type(model).__name__, result))
    _erase_unused(new)
    new.lint()
    used = {str(node.target) for node in new.nodes if node.op == "get_attr"}
    attributes = {name: value for name, value in taken.attributes.items() if name in used}
    return ExportedGraph(new, attributes, {name: value for name, value in taken.constants.items() if name in used})


@dataclass(frozen=True)
class _Taken:
    """Nodes of an exported program with their copies, and the values of those that are attributes."""

    copies: dict[Any, Any]
    attributes: dict[str, torch.Tensor]
    constants: dict[str, torch.Tensor]


def _exported(model: nn.Module, rows: torch.Tensor) -> Any:
    with warnings.catch_warnings(), _quiet(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        # It warns of its own internals, and prints graphs of what it refuses.
        warnings.simplefilter("ignore")
        try:
            batch = ({0: torch.export.Dim.DYNAMIC},)
            return torch.export.export(model, (rows,), dynamic_shapes=batch, strict=False)
        except CutError:
            raise
        except Exception as error:  # torch.export raises many kinds, all of them about the user's model
            raise CutError(_explained(model, error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own loggers from writing what an error says anyway."""
    loggers = [
        logging.getLogger(name) for name in ("torch.fx", "torch.fx.experimental.symbolic_shapes", "torch.export")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _explained(model: nn.Module, error: Exception) -> str:
    """Return torch.export's reason, the user's line and what to do."""
    text = (_ADVICE.split(str(error))[0].strip() or first_line(error)).splitlines()[0]
    place = place_of_error(error.__traceback__)
    kind, where = type(model).__name__, f", at {place}" if place else ""
    if "data-dependent" in text:
        return (
            f"{kind} decides by a value{where}: {text}; compute both and select with torch.where, or put "
            "the line into an nn.Module of its own"
        )
    if "specializ" in text or "Constraints violated" in text:
        return (
            f"{kind} is written for one size of batch: {text}; take the size from the input "
            "(x.shape[0], or -1 in a view)"
        )
    return f"{kind} cannot be exported{where}: {text}"


def _take_input(new: fx.Graph, program: Any, spec: Any, taken: _Taken) -> None:
    """Copy an input of an exported program: one of the user's, or an attribute of the model's."""
    node = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == spec.arg.name)
    if spec.kind.name == "USER_INPUT":
        if node.meta.get("val") is None:
            # An optional argument that was not given.
            taken.copies[node] = None
            return
        copy = new.placeholder(node.name)
    else:
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        target = str(spec.target)
        taken.attributes[target] = value
        if spec.kind.name == "CONSTANT_TENSOR":
            taken.constants[target] = value
        copy = new.get_attr(target)
    copy.meta.update(_meta(node))
    taken.copies[node] = copy


def _copy(new: fx.Graph, owner: nn.Module, node: fx.Node, taken: _Taken, *, grad: bool) -> None:
    """Copy a node; regions without gradients are looked into."""
    if node.op == "get_attr":
        value = getattr(owner, str(node.target))
        if isinstance(value, torch.Tensor):
            taken.attributes[str(node.target)] = taken.constants[str(node.target)] = value
            taken.copies[node] = new.get_attr(str(node.target))
        else:
            # The graph of a region, which its call looks into.
            taken.copies[node] = value
        return
    args, kwargs = fx.map_arg((node.args, node.kwargs), taken.copies.__getitem__)
    if getattr(node.target, "__name__", "") == "wrap_with_set_grad_enabled":
        taken.copies[node] = _inline(new, args, taken)
        return
    if node.target is operator.getitem and isinstance(args[0], (tuple, list)):
        taken.copies[node] = args[0][args[1]]  # type: ignore[index]
        return
    if node.target is torch.ops.aten.contiguous.default:
        # It may be called in one mode alone, as memory happens to lie, and changes no value.
        taken.copies[node] = args[0]
        return
    # A view takes values as they lie in memory, which `contiguous` would have changed.
    viewed = node.target is torch.ops.aten.view.default
    target = torch.ops.aten.reshape.default if viewed else node.target
    if kwargs.get("device") == torch.device("meta"):
        # A model that is exported without its values gets them elsewhere.
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    copy = new.create_node(node.op, target, args, kwargs, name=node.name)
    copy.meta.update(_meta(node))
    copy.meta["grad"] = grad
    copy.meta["changes"] = changes_attribute(copy)
    taken.copies[node] = copy


def _inline(new: fx.Graph, args: tuple[Any, ...], taken: _Taken) -> Any:
    """Copy the graph of a region in which gradients are on or off; return its results."""
    enabled, region, *values = args
    inputs = iter(values)
    for node in region.graph.nodes:
        if node.op == "placeholder":
            taken.copies[node] = next(inputs)
        elif node.op == "output":
            return fx.map_arg(node.args[0], taken.copies.__getitem__)
        else:
            _copy(new, region, node, taken, grad=bool(enabled))
    return ()


def _meta(node: fx.Node) -> dict[str, Any]:
    """Return what a copy of a node knows: its modules, the user's line, and whether its value may be sent."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = {entry[0].partition("@")[0]: entry[1] for entry in stack.values() if not entry[0].startswith("_empty_")}
    meta: dict[str, Any] = {
        "nn_module_stack": {path: (path, kind) for path, kind in paths.items()},
        "place": place_of_trace(node.meta.get("stack_trace") or ""),
    }
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.dim() > 0 and all(isinstance(size, int) for size in value.shape[1:]):
        meta["row"] = Row(tuple(value.shape[1:]), value.dtype)
    if value is not None:
        meta["sendable"] = (
            isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.dim() > 0
            # The batch itself, and no multiple of it.
            and str(value.shape[0]).isidentifier()
        )
    return meta


def _erase_unused(graph: fx.Graph) -> None:
    """Erase what nothing reads, assertions too, but for what changes a value in place."""
    for node in reversed(list(graph.nodes)):
        mutates = isinstance(node.target, AtenOperation) and node.target._schema.is_mutable
        if not node.users and node.op == "call_function" and not mutates:
            graph.erase_node(node)


def add_counters(evaluation: fx.Graph, training: fx.Graph) -> None:
    """Let batch norm's counters, which only training changes, be counted in eval mode too: by nothing."""
    others = iter(list(evaluation.nodes))
    other = next(others)
    copies: dict[str, fx.Node] = {str(node.target): node for node in evaluation.nodes if node.op == "get_attr"}
    for node in list(training.nodes):
        if node.target is torch.ops.aten.add_.Tensor and changes_attribute(node) and other.target != node.target:
            counter = node.args[0]
            assert isinstance(counter, fx.Node)
            if str(counter.target) not in copies:
                continue
            with evaluation.inserting_before(other):
                added = evaluation.create_node("call_function", node.target, (copies[str(counter.target)], 0), {})
            added.meta.update(node.meta)
            continue
        other = next(others, other)
