"""Tracing an unmodified model with torch.fx."""

from __future__ import annotations

import linecache
import os
import threading
from types import TracebackType
from typing import Any

import torch
from torch import fx, nn

from splitsec.cut.inplace import follow_in_place
from splitsec.cut.modes import ByMode
from splitsec.errors import CutError

# torch.fx puts wrappers around every module of the process while it traces: never two traces at once, and no module may
# run in another thread meanwhile, so split models before you start threads.
_tracing = threading.Lock()


class _Tracer(fx.Tracer):
    """torch.fx's tracer that looks into transformer encoders, and not into layers that only drop in training."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        dropping = type(m).__module__.startswith("torchvision.ops.") and type(m).__name__ in (
            "StochasticDepth",
            "Permute",
        )
        return dropping or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if type(m) is nn.TransformerEncoder and len(args) == 1 and not kwargs:
            # What its own forward comes to without masks, so that a model can be cut between its layers.
            x = args[0]
            for layer in m.layers:
                x = layer(x)
            return x if m.norm is None else m.norm(x)
        return super().call_module(m, forward, args, kwargs)


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model` symbolically with torch.fx, in both modes.

    Calls whose arguments depend on `self.training` become modules that know their mode (`ByMode`), and assertions,
    which compare shapes and would tie front and tail together, are left out.

    Raises:
        CutError: its control flow depends on data (names the line), it does something else in training than in eval
            mode, or it does not take one tensor.
    """
    if isinstance(model, fx.GraphModule):
        return model
    # Tracing runs the model's own code, which may set attributes, and adds constants; it is to stay as it was.
    held = {module: dict(vars(module)) for module in model.modules()}
    try:
        with _tracing:
            graphs = {}
            for mode in (True, False):
                model.train(mode)
                graphs[mode] = _Tracer().trace(model)
        joined = fx.GraphModule(model, graphs[False])
        forget_constants(joined, model)
        _join(joined, graphs[True], model)
        follow_in_place(joined)
        _clean(joined)
    except CutError:
        raise
    except Exception as error:  # torch.fx raises many kinds, all of them about the user's model
        raise CutError(f"{type(model).__name__} cannot be traced by torch.fx: {_reason(error)}") from error
    finally:
        for module, attributes in held.items():
            vars(module).clear()
            vars(module).update(attributes)
    joined.training = model.training
    for node in joined.graph.nodes:
        if node.op == "call_module" and isinstance(joined.get_submodule(str(node.target)), ByMode):
            # The mode of the module whose forward it stands in.
            owner = next(reversed(containers(node)), "")
            joined.get_submodule(str(node.target)).training = model.get_submodule(owner).training
    inputs = [node for node in joined.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise CutError(f"{type(model).__name__} takes {len(inputs)} inputs; a model to be cut takes one tensor")
    return joined


def _join(joined: fx.GraphModule, training: fx.Graph, model: nn.Module) -> None:
    """Make `joined`, traced in eval mode, do in training what `training` does."""
    refusal = CutError(
        f"{type(model).__name__} computes otherwise in training (its forward uses self.training); use modules such as "
        "nn.Dropout, which know their mode"
    )
    ours, theirs = list(joined.graph.nodes), list(training.nodes)
    if len(ours) != len(theirs) or not all(_alike(model, *pair) for pair in zip(ours, theirs, strict=True)):
        raise refusal
    partner = dict(zip(theirs, ours, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        args, kwargs = fx.map_arg((other.args, other.kwargs), partner.__getitem__)
        if (args, kwargs) == (one.args, one.kwargs):
            continue
        if one.op not in ("call_function", "call_method") or set(_nodes(args, kwargs)) != set(one.all_input_nodes):
            raise refusal
        inputs = list(one.all_input_nodes)
        path = one.name if not hasattr(joined, one.name) else f"{one.name}_by_mode"
        joined.add_module(path, ByMode(one.target, (args, kwargs), (one.args, one.kwargs), inputs))
        with joined.graph.inserting_after(one):
            made = joined.graph.call_module(path, tuple(inputs))
        made.meta.update(one.meta)
        partner[other] = made
        one.replace_all_uses_with(made)
        joined.graph.erase_node(one)


def _alike(model: nn.Module, one: fx.Node, other: fx.Node) -> bool:
    if one.op == other.op == "get_attr" and one.target != other.target:
        # Constants of the forward are numbered anew in each trace.
        values = [getattr(model, str(node.target), None) for node in (one, other)]
        return all(isinstance(value, torch.Tensor) for value in values) and torch.equal(*values)  # type: ignore[arg-type]
    return one.op == other.op and one.target == other.target


def _nodes(*values: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(values, lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return found


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


def _reason(error: Exception) -> str:
    """What torch.fx says, and the user's own line at which it said so."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    text = text.split(" by default. If you want")[0]
    line = _user_line(error.__traceback__)
    return f"{text}, at {line}; compute it with torch functions instead" if line else text


def _user_line(trace: TracebackType | None) -> str:
    # The last frame that is neither torch's nor ours.
    inner = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + "/cut")
    found = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith((*inner, "<")):
            source = linecache.getline(code.co_filename, trace.tb_lineno).strip()
            found = f"{code.co_filename}:{trace.tb_lineno} ({source})"
        trace = trace.tb_next
    return found
