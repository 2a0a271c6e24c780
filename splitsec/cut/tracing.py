"""Tracing an unmodified model with torch.fx."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from splitsec.cut.gradients import keep_regions
from splitsec.cut.inplace import changed_attribute, follow_in_place
from splitsec.cut.modes import ByMode
from splitsec.cut.results import describe_result, nodes_in
from splitsec.cut.state import Generators, as_it_was
from splitsec.cut.tracer import Tracer, UntraceableError, changed, place_of_error, random_numbers
from splitsec.errors import CutError, first_line

# torch.fx puts wrappers around every module of the process while it traces: never two traces at once.
_tracing = threading.Lock()
# What wraps a model so that nothing can look into it, and where the model is.
_WRAPPERS = {
    "OptimizedModule": "compile the segments, not the model: give the model itself (`model._orig_mod`)",
    "DataParallel": "give the model itself (`model.module`)",
    "DistributedDataParallel": "give the model itself (`model.module`)",
    "RecursiveScriptModule": "give the model that torch.jit.script was called on",
    "TopLevelTracedModule": "give the model that torch.jit.trace was called on",
}


@dataclass
class _Whole:
    """Modules that are called as they are, since what they do no graph can say: why, by path."""

    reasons: dict[str, str] = field(default_factory=dict)
    kinds: set[type[nn.Module]] = field(default_factory=set)


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model` symbolically with torch.fx, in both modes, and leave it exactly as it was.

    Calls whose arguments depend on `self.training` become modules that know their mode (`ByMode`). Assertions, which
    compare shapes and would tie front and tail together, are taken as true and left out. A module inside that no graph
    can say (it changes its buffers, does something else in training, or decides by data) is called as it is, and
    cannot be cut inside; `meta["whole"]` of the result has the reason by its path.

    Raises:
        CutError: the model's own forward is such (names the module and the line), or it does not take one tensor and
            return one.
    """
    if isinstance(model, fx.GraphModule):
        return model
    _check_inputs(model)
    whole = _Whole()
    modes = torch.enable_grad(), torch.inference_mode(False), torch.autocast("cpu", enabled=False)
    with _tracing, modes[0], modes[1], modes[2]:
        while True:
            try:
                joined = _traced(model, whole, buffers=True)
                break
            except UntraceableError as error:
                joined_by_value = _traced_by_value(model, whole) if error.by_value else None
                if joined_by_value is not None:
                    joined = joined_by_value
                    break
                _keep_whole(model, whole, error)
    called = {str(node.target) for node in joined.graph.nodes if node.op == "call_module"}
    joined.meta["whole"] = {path: reason for path, reason in whole.reasons.items() if path in called}
    joined.training = model.training
    for node in joined.graph.nodes:
        if node.op == "call_module" and isinstance(joined.get_submodule(str(node.target)), ByMode):
            # The mode of the module whose forward it stands in.
            owner = next(reversed(containers(node)), "")
            joined.get_submodule(str(node.target)).training = model.get_submodule(owner).training
    return joined


def trace_in_eval(layer: nn.Module) -> fx.GraphModule:
    """What `layer` does in eval mode, traced symbolically; it is left as it was.

    Raises:
        CutError: no graph says it (names the line).
    """
    _check_inputs(layer)
    with _tracing, torch.enable_grad(), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        try:
            with as_it_was(layer):
                layer.eval()
                graph = _graph(layer, Tracer({}, set(), {}, buffers=True))
                made = fx.GraphModule(layer, graph)
            follow_in_place(made)
            keep_regions(made)
            _clean(made)
        except UntraceableError as error:
            raise CutError(f"{error}; {error.advice}") from error
    return made.eval()


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
            f"{kind} takes {len(required)} inputs ({', '.join(required)}); a model to be cut takes one tensor: join "
            "them along a dimension and take them apart in forward, such as x[:, :5] and x[:, 5:].long(), or give all "
            "but the first a default"
        )
    if len(parameters) == len(named):
        raise CutError(f"{kind} takes no input; a model to be cut takes one tensor")


def _keep_whole(model: nn.Module, whole: _Whole, error: UntraceableError) -> None:
    """Call the module at fault as it is from now on, or the one around it where that did not help."""
    path = error.path
    while path and (path in whole.reasons or not _is_callable(model.get_submodule(path))):
        path = path.rpartition(".")[0]
    if not path:
        where = f" ('{error.path}', {type(model.get_submodule(error.path)).__name__})" if error.path else ""
        raise CutError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}{where}; {error.advice}"
        ) from error
    whole.reasons[path] = str(error)
    kind = type(model.get_submodule(path))
    if not kind.__module__.startswith("torch.") and kind is not type(model):
        for other, module in model.named_modules():
            if type(module) is kind and other:
                whole.reasons.setdefault(other, str(error))
        whole.kinds.add(kind)


def _is_callable(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _traced_by_value(model: nn.Module, whole: _Whole) -> fx.GraphModule | None:
    """The graph where forward decides by values of buffers, which it must have; None if that does not help."""
    try:
        return _traced(model, whole, buffers=False)
    except UntraceableError:
        return None


def _traced(model: nn.Module, whole: _Whole, *, buffers: bool) -> fx.GraphModule:
    """One graph for both modes.

    Raises:
        UntraceableError: there is none.
    """
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
        _join(joined, graphs[True], constants)
    follow_in_place(joined)
    keep_regions(joined)
    _clean(joined)
    return joined


def _graph(model: nn.Module, tracer: Tracer) -> fx.Graph:
    generators, before = Generators(), _tensors(model)
    try:
        graph = tracer.trace_whole(model)
    except UntraceableError:
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
            raise UntraceableError(_owner(node), *changed(name, node.meta.get("place", "")))
    _refuse_dicts(model, graph)
    _take_one_result(model, graph)
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
    """Parameters, buffers and other tensors of each module, by its path."""
    return {
        path: {
            **module._parameters,
            **module._buffers,
            **{name: value for name, value in vars(module).items() if isinstance(value, (torch.Tensor, fx.Proxy))},
        }
        for path, module in model.named_modules()
    }


def _take_one_result(model: nn.Module, graph: fx.Graph) -> None:
    """Let the graph return the one tensor of a dict or tuple, as `one_tensor` does of what the model returns.

    Raises:
        CutError: there are several, or none.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    found = nodes_in(output.args[0])
    if len(found) == 1:
        output.args = (found[0],)
        return
    kind = type(model).__name__
    if not found:
        raise CutError(f"{kind} returns nothing that depends on its input")
    raise CutError(
        f"{kind} returns {describe_result(output.args[0])}; a model to be cut returns one tensor: wrap it in an "
        "nn.Module whose forward returns the one that is wanted, such as `return self.model(x)"
        f"{'[0]' if not isinstance(output.args[0], Mapping) else repr([next(iter(output.args[0]))])}`"
    )


def explain(error: Exception, place: str) -> tuple[str, str]:
    """What torch.fx says and the user's own line at which it said so; and what to write there instead."""
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


def _join(joined: fx.GraphModule, training: fx.Graph, constants: Mapping[bool, Mapping[str, torch.Tensor]]) -> None:
    """Make `joined`, traced in eval mode, do in training what `training` does."""
    ours, theirs = list(joined.graph.nodes), list(training.nodes)
    for one, other in _pairs(ours, theirs):
        if one is None or other is None or not _alike(one, other, constants):
            raise _other_in_training(one, other, longer=len(theirs) > len(ours))
    partner = dict(zip(theirs, ours, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        args, kwargs = fx.map_arg((other.args, other.kwargs), partner.__getitem__)
        if (args, kwargs) == (one.args, one.kwargs):
            continue
        if one.op not in ("call_function", "call_method") or set(nodes_in((args, kwargs))) != set(one.all_input_nodes):
            raise _other_in_training(one, other, longer=True)
        inputs = list(one.all_input_nodes)
        path = one.name if not hasattr(joined, one.name) else f"{one.name}_by_mode"
        joined.add_module(path, ByMode(one.target, (args, kwargs), (one.args, one.kwargs), inputs))
        with joined.graph.inserting_after(one):
            made = joined.graph.call_module(path, tuple(inputs))
        made.meta.update(one.meta)
        partner[other] = made
        one.replace_all_uses_with(made)
        joined.graph.erase_node(one)


def _pairs(ours: list[fx.Node], theirs: list[fx.Node]) -> Iterator[tuple[fx.Node | None, fx.Node | None]]:
    for index in range(max(len(ours), len(theirs))):
        yield (ours[index] if index < len(ours) else None, theirs[index] if index < len(theirs) else None)


def _other_in_training(one: fx.Node | None, other: fx.Node | None, *, longer: bool) -> UntraceableError:
    """The first difference is the fault of the module that has a step more than in the other mode."""
    first, second = (other, one) if longer else (one, other)
    node = first if first is not None else second
    assert node is not None
    paths = [_owner(found) for found in (first, second) if found is not None]
    # A step of the module around it says nothing of the one inside.
    path = paths[1] if len(paths) == 2 and paths[1].startswith(f"{paths[0]}." if paths[0] else "") else paths[0]
    place = node.meta.get("place", "")
    return UntraceableError(
        path if path or not paths else paths[0],
        f"it computes otherwise in training{f', at {place}' if place else ''} (its forward uses self.training)",
        "use modules such as nn.Dropout, which know their mode, or put what differs into an nn.Module of its own, "
        "which is then called as it is",
    )


def _alike(one: fx.Node, other: fx.Node, constants: Mapping[bool, Mapping[str, torch.Tensor]]) -> bool:
    if one.op == other.op == "output":
        return True
    if one.meta.get("grad", True) != other.meta.get("grad", True):
        return False
    if one.op == other.op == "get_attr" and str(other.target) in constants[True]:
        # Constants of the forward are numbered anew in each trace.
        ours, theirs = constants[False].get(str(one.target)), constants[True][str(other.target)]
        return ours is theirs or (ours is not None and not ours.is_meta and torch.equal(ours, theirs))
    return one.op == other.op and one.target == other.target


def _owner(node: fx.Node) -> str:
    """The path of the module whose forward makes a node."""
    return next(reversed(containers(node)), "")


def containers(node: fx.Node) -> list[str]:
    """Paths of the modules that a node lies in, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry, tuple) and entry and entry[0]]
    return [path for path in paths if path != node.target]


def forget_constants(made: fx.GraphModule, source: nn.Module) -> None:
    """Keep out of a state dict what that of `source` does not hold: torch.fx makes constants into buffers."""
    known = source.state_dict().keys()
    for path, module in made.named_modules():
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) not in known:
                module._non_persistent_buffers_set.add(name)


def _clean(traced: fx.GraphModule) -> None:
    for node in reversed(list(traced.graph.nodes)):
        # Assertions, which torch.fx would keep, and what nobody reads.
        if node.op == "call_function" and not node.users:
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()
