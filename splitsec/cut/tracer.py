"""A tracer of torch.fx that records or refuses what torch.fx would lose without a word.

torch.fx runs a model's forward on stand-ins for values. What forward does besides computing is lost or happens to the
model itself: changes of buffers, random numbers, `torch.no_grad()`, the backward of an `autograd.Function`. Here each
is recorded in the graph, or stops the trace and names the module that does it.
"""

from __future__ import annotations

import ast
import functools
import linecache
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from splitsec.cut.place import place_of, user_frame
from splitsec.cut.state import state_tensors

# Layers that do nothing to a stand-in, since they act by the type of their input, such as transforms of images.
_LEAF_PACKAGES = ("torchvision.transforms.",)
_LEAF_OPERATIONS = ("StochasticDepth", "Permute")


class UntraceableError(Exception):
    """A module does something that a graph cannot express.

    Attributes:
        path: the module's path; "" for the whole model.
        reason: what it does, with the user's line where it is known.
        advice: what to do about it.
        by_value: whether knowing the values of buffers may help.
    """

    def __init__(self, path: str, reason: str, advice: str, *, by_value: bool = False) -> None:
        super().__init__(reason)
        self.path, self.advice, self.by_value = path, advice, by_value


class Tracer(fx.Tracer):
    """torch.fx's tracer, which looks into transformer encoders, and not into the modules that it is told to leave.

    Args:
        leaves: paths of modules to call as they are.
        kinds: classes of modules to call as they are.
        functions: the function that stands for each `autograd.Function`; filled here, and shared by several traces.
        buffers: record uses of buffers, so that constants computed from them follow their values; False where forward
            needs their values to decide.
    """

    def __init__(
        self,
        leaves: Mapping[str, object],
        kinds: set[type[nn.Module]],
        functions: dict[type, Callable[..., Any]],
        *,
        buffers: bool,
    ) -> None:
        super().__init__()
        self.proxy_buffer_attributes = buffers
        self._leaves, self._kinds, self._functions = leaves, kinds, functions
        # torch.fx wraps every module of the process while it traces, and other threads may call theirs.
        self._thread = threading.get_ident()
        # As forward sets it. Inside an `autograd.Function`, where its call is recorded, gradients are off.
        self.gradients = True

    @property
    def innermost(self) -> str:
        """Return the path of the module whose forward runs, or ran when an error was raised."""
        return str(next(reversed(self.module_stack.values()), ("", None))[0])

    def trace_whole(self, root: nn.Module) -> fx.Graph:
        """Trace a call of a module, with its hooks, on its first argument; other arguments keep their defaults."""
        with _recorded_functions(self), _recorded_modes(self), _Watch(root, self):
            return self.trace(root)

    def create_args_for_root(self, *_: Any, **_options: Any) -> tuple[Any, list[Any]]:
        """Call the module and not its class's forward, so that hooks and a forward of the instance's own run too."""
        value = self.create_proxy("placeholder", input_name(self.root), (), {})
        return (lambda root, x: root(x)), [self.root, value]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether the graph calls the module instead of what its forward does."""
        if not module_qualified_name:
            return False
        package, kind = type(m).__module__, type(m).__name__
        return (
            module_qualified_name in self._leaves
            or type(m) in self._kinds
            or package.startswith(_LEAF_PACKAGES)
            or (package.startswith("torchvision.ops.") and kind in _LEAF_OPERATIONS)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do as torch.fx, but look into transformer encoders, and leave modules alone that other threads call."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or {}):
            return self._call_new(m, forward, args, kwargs)
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            refuse_backward_hooks(m, path)
        if type(m) is nn.TransformerEncoder and len(args) == 1 and not kwargs and path not in self._leaves:
            # Its own forward does the same without masks; so a model can be cut between its layers.
            x = args[0]
            for layer in m.layers:
                x = layer(x)
            return x if m.norm is None else m.norm(x)
        return super().call_module(m, forward, args, kwargs)

    def _call_new(self, module: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Look into a layer that forward has just made, such as `nn.ReLU()(x)`.

        Raises:
            UntraceableError: the layer has weights, which would be others at each call.
        """
        if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
            place = place_of(sys._getframe(1))
            raise UntraceableError(
                self.innermost,
                f"it makes a layer with weights, {type(module).__name__}, in forward{_at(place)}",
                "make the layer in __init__",
            )
        return forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Do as torch.fx, but leave alone what other threads read."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Do as torch.fx, and note the user's line and whether gradients are on."""
        node = super().create_node(*args, **kwargs)
        node.meta["place"] = place_of(sys._getframe(1))
        node.meta["grad"] = self.gradients and not torch.is_inference_mode_enabled()
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            where = node.meta["place"]
            raise UntraceableError(
                self.innermost,
                f"it runs under torch.autocast, at {where}" if where else "it runs under torch.autocast",
                "leave autocast out of forward, and convert the model with .to(dtype)",
            )
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Take assertions as true; anything else would decide by a value that is not known."""
        frame = user_frame(sys._getframe(1))
        if frame is not None and _in_assertion(frame):
            return True
        return super().to_bool(obj)

    def applied(self, function: type) -> Callable[..., Any]:
        """Return the function that stands in the graph for `function.apply`."""
        if function not in self._functions:

            def call(*args: Any) -> Any:
                return function.apply(*args)  # type: ignore[attr-defined]

            call.__name__ = call.__qualname__ = function.__name__
            call.function = function  # type: ignore[attr-defined]
            self._functions[function] = call
        return self._functions[function]


def input_name(model: nn.Module) -> str:
    """Return the name of the model's first argument."""
    import inspect

    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return parameter.name
    return "x"


def refuse_backward_hooks(module: nn.Module, path: str) -> None:
    """Raise `UntraceableError` for a module with a backward hook."""
    for table in (module._backward_hooks, module._backward_pre_hooks):
        for hook in table.values():
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise UntraceableError(
                path, f"it has a backward hook, '{name}', which no segment would run", "remove the hook"
            )


class _Watch(TorchDispatchMode):
    """A mode that stops, while a model is traced, draws of random numbers and changes of the model's own tensors."""

    def __init__(self, model: nn.Module, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer
        named = [*state_tensors(model), *model.named_parameters()]
        self._names = {value.untyped_storage()._cdata: name for name, value in named if _has_storage(value)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise UntraceableError(self._tracer.innermost, *random_numbers(place_of(sys._getframe(1))))
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            name = self._names.get(value.untyped_storage()._cdata) if _has_storage(value) else None
            if name is not None:
                raise UntraceableError(self._tracer.innermost, *changed(name, place_of(sys._getframe(1))))
        return func(*args, **kwargs)


def _has_storage(value: object) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    try:
        value.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def random_numbers(place: str) -> tuple[str, str]:
    """Return the reason and the advice for random numbers that would become constants."""
    return (
        f"it draws random numbers in forward{_at(place)}, which a cut would make constants",
        "draw them by the value that they meet (torch.randn_like(h)), or in an nn.Module of their own",
    )


def changed(name: str, place: str) -> tuple[str, str]:
    """Return the reason and the advice for a forward that changes the model's state."""
    return (
        f"its forward changes '{name}'{_at(place)}, and neither side of a cut of it could",
        f"move what changes '{name}' into an nn.Module of its own, which is then called as it is on its side of the "
        "cut, or leave it out",
    )


def _at(place: str) -> str:
    return f" at {place}" if place else ""


@contextmanager
def _recorded_functions(tracer: Tracer) -> Iterator[None]:
    """Record calls of `autograd.Function`s, whose backward would be lost if only their forward were traced.

    In the block their forward is replaced, and not `apply`, which programs keep under other names.
    """
    base, replaced = torch.autograd.Function, []
    for function in _subclasses(base):
        for name in ("forward", "setup_context"):
            if getattr(function, name) is not getattr(base, name):
                replaced.append((function, name, function.__dict__.get(name)))
    originals = {(function, name): getattr(function, name) for function, name, _ in replaced}
    for (function, name), original in originals.items():
        setattr(function, name, staticmethod(_recording(tracer, function, name, original)))
    try:
        yield
    finally:
        for function, name, own in replaced:
            if own is None:
                delattr(function, name)
            else:
                setattr(function, name, own)


@contextmanager
def _recorded_modes(tracer: Tracer) -> Iterator[None]:
    """Note in the block where forward turns gradients on and off."""
    thread = threading.get_ident()
    tracer.gradients = torch.is_grad_enabled()

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if threading.get_ident() == thread:
                tracer.gradients = torch.is_grad_enabled()
            return result

        return call

    with ExitStack() as stack:
        for kind in (torch.no_grad, torch.enable_grad, torch.set_grad_enabled):
            for name in ("__init__", "__enter__", "__exit__"):
                original = vars(kind).get(name)
                if original is not None:
                    setattr(kind, name, noting(original))
                    stack.callback(setattr, kind, name, original)
        yield


def _recording(tracer: Tracer, function: type, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        values = args[1:] if args and isinstance(args[0], torch.autograd.function.FunctionCtx) else args
        if not _holds_proxy((values, kwargs)):
            return original(*args, **kwargs)
        if name == "setup_context":
            return None
        return tracer.create_proxy("call_function", tracer.applied(function), values, kwargs)

    return call


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _holds_proxy(value: Any) -> bool:
    proxies: list[Any] = []
    fx.node.map_aggregate(value, lambda part: proxies.append(part) if isinstance(part, fx.Proxy) else None)
    return bool(proxies)


def _in_assertion(frame: FrameType) -> bool:
    """Say whether a frame is at an `assert`."""
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except SyntaxError:
        return False
    return any(
        isinstance(node, ast.Assert) and node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno)
        for node in ast.walk(tree)
    )
