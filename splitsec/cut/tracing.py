"""Tracing an unmodified model with torch.fx."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from splitsec.cut.both_modes import join_modes, owner
from splitsec.cut.exported import ExportedGraph, add_counters, export_graph
from splitsec.cut.gradients import keep_regions
from splitsec.cut.in_place import changed_attribute, changes_attribute, follow_in_place
from splitsec.cut.mode_switch import ByMode
from splitsec.cut.place import place_of_error
from splitsec.cut.results import SeveralResultsError, one_result
from splitsec.cut.samples import make_sample
from splitsec.cut.state import Generators, as_it_was
from splitsec.cut.tracer import Tracer, UntraceableError, changed, random_numbers, refuse_backward_hooks
from splitsec.errors import CutError, first_line

# torch.fx wraps every module of the process while it traces, so that there must never be two traces at once.
_tracing = threading.Lock()
# Wrappers that hide a model, and where the model is.
_WRAPPERS = {
    "OptimizedModule": "compile the segments, not the model: give the model itself (`model._orig_mod`)",
    "DataParallel": "give the model itself (`model.module`)",
    "DistributedDataParallel": "give the model itself (`model.module`)",
    "RecursiveScriptModule": "give the model that torch.jit.script was called on",
    "TopLevelTracedModule": "give the model that torch.jit.trace was called on",
}


@dataclass
class _Whole:
    """The modules that are called as they are, since no graph can express what they do.

    Attributes:
        reasons: why, by the module's path.
        kinds: their classes.
        by_value: paths of those that decide by values or shapes, which torch.export knows.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    kinds: set[type[nn.Module]] = field(default_factory=set)
    by_value: set[str] = field(default_factory=set)


def trace(model: nn.Module, sample: torch.Tensor | None = None) -> fx.GraphModule:
    """Trace `model` in both modes, and leave it exactly as it was: with torch.fx, or torch.export where that refuses.

    torch.fx comes first, since its graph is of whole layers and of any shape, and since loading torch.export takes
    seconds. What it refuses, or could not look into, such as Hugging Face's models, is exported (`export_graph`).

    Args:
        sample: inputs (N, ...) of the shape to export for; None makes them as the model's first layers suggest.

    Raises:
        CutError: no graph can express the model's own forward (names the module and the line), or it does not take one
            tensor and return one.
    """
    if isinstance(model, fx.GraphModule):
        return model
    _check_inputs(model)
    traced, refusal = None, None
    try:
        traced = trace_with_fx(model)
    except CutError as error:
        cause = error.__cause__
        by_value = isinstance(cause, UntraceableError) and cause.by_value
        if not by_value and not isinstance(error, SeveralResultsError):
            # It does what no graph may lose.
            raise
        refusal = error
    if traced is not None and not traced.meta["whole_by_value"]:
        return traced
    sample = make_sample(model, shapes_alone=True) if sample is None else sample
    try:
        if sample is not None:
            return trace_exported(model, sample)
    except CutError as error:
        if isinstance(refusal, SeveralResultsError):
            # Which torch.export knows more of.
            raise
        if refusal is not None:
            raise CutError(f"{error} (torch.fx refuses it too: {refusal})") from refusal
    if traced is None:
        assert refusal is not None
        raise refusal
    return traced


def trace_exported(model: nn.Module, sample: torch.Tensor) -> fx.GraphModule:
    """Trace `model` with torch.export, in both modes, for inputs like `sample` (N, ...), and leave it as it was.

    Raises:
        CutError: torch.export refuses it, or it does something else in training than other arguments can say.
    """
    graphs: dict[bool, ExportedGraph] = {}
    for path, module in model.named_modules():
        try:
            refuse_backward_hooks(module, path)
        except UntraceableError as error:
            raise CutError(f"{error} ('{path}'); {error.advice}") from error
    with _alone(), as_it_was(model):
        for mode in (True, False):
            # Which puts the generators back.
            with as_it_was(model, values=True):
                generators = Generators()
                model.train(mode)
                graphs[mode] = export_graph(model, sample)
                drew = generators.foreign_drew()
            if drew:
                reason, _ = random_numbers("")
                raise CutError(f"{type(model).__name__}: {reason} (by Python's {drew}); draw them with torch")
    add_counters(graphs[False].graph, graphs[True].graph)
    attributes = {**graphs[True].attributes, **graphs[False].attributes}
    joined = fx.GraphModule(attributes, graphs[False].graph)
    forget_constants(joined, model)
    try:
        join_modes(joined, graphs[True].graph, {mode: graphs[mode].constants for mode in graphs})
        _finish(joined)
    except UntraceableError as error:
        raise CutError(f"{type(model).__name__} cannot be exported: {error}; {error.advice}") from error
    joined.meta["whole"] = {}
    joined.meta["exported"] = tuple(sample.shape[1:])
    return _with_modes(joined, model)


def trace_with_fx(model: nn.Module) -> fx.GraphModule:
    """Trace `model` symbolically with torch.fx, in both modes, and leave it exactly as it was.

    Calls whose arguments depend on `self.training` become modules that know their mode (`ByMode`). Assertions, which
    compare shapes and would tie front and tail together, are taken as true and left out. A module inside that no graph
    can express (it changes its buffers, does something else in training, or decides by data) is called as it is, and
    cannot be cut inside; `meta["whole"]` of the result has the reason by its path.

    Raises:
        CutError: no graph can express the model's own forward (names the module and the line), or it does not take one
            tensor and return one.
    """
    whole, joined = _Whole(), None
    with _alone():
        while joined is None:
            try:
                joined = _traced(model, whole, buffers=True)
            except UntraceableError as error:
                joined = _traced_by_value(model, whole) if error.by_value else None
                if joined is None:
                    _keep_whole(model, whole, error)
    called = {str(node.target) for node in joined.graph.nodes if node.op == "call_module"}
    joined.meta["whole"] = {path: reason for path, reason in whole.reasons.items() if path in called}
    joined.meta["whole_by_value"] = whole.by_value & called
    return _with_modes(joined, model)


def _with_modes(joined: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Return a traced model whose modes are the model's."""
    joined.training = model.training
    for node in joined.graph.nodes:
        if node.op == "call_module" and isinstance(joined.get_submodule(str(node.target)), ByMode):
            # The mode of the module whose forward it stands in.
            joined.get_submodule(str(node.target)).training = model.get_submodule(owner(node)).training
    return joined


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other trace run in the block, and let torch's modes be the usual ones."""
    with _tracing, torch.enable_grad(), torch.inference_mode(mode=False), torch.autocast("cpu", enabled=False):
        yield


def trace_in_eval(layer: nn.Module) -> fx.GraphModule:
    """Trace what `layer` does in eval mode, and leave it as it was.

    Raises:
        CutError: no graph can express it (names the line).
    """
    _check_inputs(layer)
    with _alone():
        try:
            with as_it_was(layer):
                layer.eval()
                traced = fx.GraphModule(layer, _graph(layer, Tracer({}, set(), {}, buffers=True)))
            _finish(traced)
        except UntraceableError as error:
            raise CutError(f"{error}; {error.advice}") from error
    return traced.eval()


def _check_inputs(model: nn.Module) -> None:
    kind = type(model).__name__
    if kind in _WRAPPERS:
        raise CutError(f"a {kind} cannot be cut: {_WRAPPERS[kind]}")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CutError(
                f"layer '{path}' is compiled by torch.jit, and no segment could share its weights: give the model "
                "with the layer that torch.jit was called on"
            )
    for path, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise CutError(
                f"{kind} has a layer whose size is not known before it runs ('{path}'): give it its size, or run the "
                "model once on an input where it is made"
            )
    parameters = inspect.signature(model.forward).parameters.values()
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    named = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if len(required) > 1 or any(parameter.name in required for parameter in named):
        raise CutError(
            f"{kind} takes {len(required)} inputs ({', '.join(required)}): say behind the model's name of what shape "
            f"each is for a sample: MODEL({', '.join(f'{name}: 5' for name in required)}), with a dtype such as int64 "
            "where it takes no real numbers; or give SplitModel a sample of each by name"
        )
    if len(parameters) == len(named):
        raise CutError(f"{kind} takes no input; a model to be cut takes one tensor")


def _keep_whole(model: nn.Module, whole: _Whole, error: UntraceableError) -> None:
    """Call the module at fault as it is from now on, or the module around it where that did not help."""
    path = error.path
    while path and (path in whole.reasons or not _is_callable(model.get_submodule(path))):
        path = path.rpartition(".")[0]
    if not path:
        where = f" ('{error.path}', {type(model.get_submodule(error.path)).__name__})" if error.path else ""
        raise CutError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}{where}; {error.advice}"
        ) from error
    whole.reasons[path] = str(error)
    if error.by_value:
        whole.by_value.add(path)
    kind = type(model.get_submodule(path))
    if not kind.__module__.startswith("torch.") and kind is not type(model):
        for other, module in model.named_modules():
            if type(module) is kind and other:
                whole.reasons.setdefault(other, str(error))
        whole.kinds.add(kind)


def _is_callable(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _traced_by_value(model: nn.Module, whole: _Whole) -> fx.GraphModule | None:
    """Trace again with the values of buffers, by which forward may decide; return None if that does not help."""
    try:
        return _traced(model, whole, buffers=False)
    except UntraceableError:
        return None


def _traced(model: nn.Module, whole: _Whole, *, buffers: bool) -> fx.GraphModule:
    """Return one graph for both modes; raises `UntraceableError` where there is none."""
    functions: dict[type, Callable[..., Any]] = {}
    graphs: dict[bool, fx.Graph] = {}
    constants: dict[bool, dict[str, torch.Tensor]] = {}
    with as_it_was(model):
        for mode in (True, False):
            with as_it_was(model):
                model.train(mode)
                graphs[mode] = _graph(model, Tracer(whole.reasons, whole.kinds, functions, buffers=buffers))
                constants[mode] = {
                    name: value for name, value in vars(model).items() if isinstance(value, torch.Tensor)
                }
        # torch.fx makes constants of a forward attributes of the model, from which the graph's module takes them.
        vars(model).update(constants[False])
        joined = fx.GraphModule(model, graphs[False])
        forget_constants(joined, model)
        join_modes(joined, graphs[True], constants)
    _finish(joined)
    return joined


def _graph(model: nn.Module, tracer: Tracer) -> fx.Graph:
    generators, before = Generators(), _tensors(model)
    try:
        graph = tracer.trace_whole(model)
    except (UntraceableError, CutError):
        raise
    except Exception as error:  # torch.fx raises many kinds, all of them about the user's model
        place = place_of_error(error.__traceback__)
        raise UntraceableError(tracer.innermost, *explain(error, place), by_value=True) from error
    drew = generators.foreign_drew()
    if drew:
        reason, _ = random_numbers("")
        raise UntraceableError(
            "", f"{reason} (by Python's {drew})", "draw them with torch, in an nn.Module of their own"
        )
    for path, table in _tensors(model).items():
        for name, value in table.items():
            if before[path].get(name) is not value and before[path].get(name) is not None:
                raise UntraceableError(path, *changed(f"{path}.{name}" if path else name, ""))
    for node in graph.nodes:
        name = changed_attribute(model, node)
        if name:
            raise UntraceableError(owner(node), *changed(name, node.meta.get("place", "")))
    _refuse_dicts(model, graph)
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (one_result(type(model).__name__, output.args[0]),)
    return graph


def _refuse_dicts(model: nn.Module, graph: fx.Graph) -> None:
    """Raise `CutError` if the model looks its input up by names."""
    for node in graph.nodes:
        if node.target is operator.getitem and isinstance(node.args[1], str) and node.args[0].op == "placeholder":
            raise CutError(
                f"{type(model).__name__} takes a dict ('{node.args[0].name}[{node.args[1]!r}]'); a model to be cut "
                "takes one tensor: wrap it in an nn.Module whose forward makes the dict of one, such as "
                f"`return self.model({{{node.args[1]!r}: x}})`"
            )


def _tensors(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return parameters, buffers and other tensors of each module, by its path."""
    return {
        path: {
            **module._parameters,
            **module._buffers,
            **{name: value for name, value in vars(module).items() if isinstance(value, (torch.Tensor, fx.Proxy))},
        }
        for path, module in model.named_modules()
    }


def explain(error: Exception, place: str) -> tuple[str, str]:
    """Return what torch.fx says with the user's own line, and what to write there instead."""
    text = first_line(error)
    text = text.split(" by default. If you want")[0]
    source = place.partition(" (")[2]
    otherwise = "compute it with torch functions instead"
    if "control flow" in text and any(word in source for word in _SHAPES):
        otherwise = (
            "it decides by the input's shape or type, which a graph does not know: write the branch that your inputs "
            "take, without the test"
        )
    elif "control flow" in text:
        otherwise = "compute both and select with torch functions such as torch.where"
    elif "slice indices" in text:
        otherwise = "slice by fixed lengths, or slice a buffer of the module's (register_buffer)"
    elif "item assignment" in text:
        otherwise = "join the parts with torch.cat or torch.stack, or select with torch.where"
    elif "iterated" in text or "as an integer" in text or "len" in text:
        otherwise = "repeat a fixed number of times, or use functions of whole tensors"
    where = f", at {place}" if place else ""
    return f"{text}{where}", f"{otherwise}, or put the line into an nn.Module of its own, which is then called as it is"


_SHAPES = (".dim()", ".ndim", ".shape", ".size(", ".dtype", ".device", "len(", ".is_cuda", ".is_floating_point")


def forget_constants(traced: fx.GraphModule, source: nn.Module) -> None:
    """Keep out of a state dict what that of `source` has not: torch.fx makes buffers of constants."""
    known = source.state_dict().keys()
    for path, module in traced.named_modules():
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) not in known:
                module._non_persistent_buffers_set.add(name)


def _finish(traced: fx.GraphModule) -> None:
    """Follow what works in place, keep regions without gradients, and erase what is not used."""
    follow_in_place(traced)
    keep_regions(traced)
    for node in reversed(list(traced.graph.nodes)):
        # Assertions, which torch.fx would keep, and values that nothing reads.
        if node.op == "call_function" and not node.users and not changes_attribute(node):
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code(lambda node: node.is_impure() or changes_attribute(node))
    traced.graph.lint()
    traced.recompile()
