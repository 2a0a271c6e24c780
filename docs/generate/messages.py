"""The page of messages, from the message classes of the package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec
import torch

import splitsec
from generate.markdown import code, read_docstring, table
from splitsec.transport import fields
from splitsec.transport.codec import Message
from splitsec.transport.tensor_specs import DTYPE_NAMES, Optional, Several, TensorSpec
from splitsec.version import PROTOCOL

INTRODUCTION = f"""# Messages

What the parties send each other. Protocol number: **{PROTOCOL}**; [the changelog](changelog.md#wire-protocol) says what
each number changed, and parties of different numbers refuse each other.

A message is one msgpack header, a map with the name of the message (`type`) and its fields, and then the raw frames of
its tensors, whose types and shapes the header lists in the order of the tables below, an absent one as nil. What does
not fit the types below is refused before it is used. Sizes of one name are equal within a message.
"""

# What starts parties and measures; not imported, since some of it needs libraries of its own.
_WITHOUT_MESSAGES = ("bench", "cli", "apps")
# As docstrings of messages begin: "Client to server: ...".
_PARTY = r"(?:(?:server|client|dealer|holder|worker|forker)(?: or (?:server|client|dealer))?)"
_DIRECTION = re.compile(rf"\b{_PARTY}(?: [^:;.]{{1,40}})? to (?:a session's )?{_PARTY}(?: and back)?\b", re.IGNORECASE)


def modules() -> Iterator[ModuleType]:
    """Yield every module of the package that defines messages: training's, prediction's, then the others."""
    names = [info.name for info in pkgutil.walk_packages(splitsec.__path__, "splitsec.")]
    order = ["splitsec.training", "splitsec.prediction", "splitsec.mpc", "splitsec.parties"]
    for name in sorted(
        names, key=lambda name: next((at for at, prefix in enumerate(order) if name.startswith(prefix)), len(order))
    ):
        if name.split(".")[1] in _WITHOUT_MESSAGES or name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        if any(issubclass(kind, Message) for kind in structs(module)):
            yield module


def structs(module: ModuleType) -> list[type[msgspec.Struct]]:
    """Return the structs that a module defines, in the order of the file."""
    return [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == module.__name__
        and kind.__name__ not in ("Message", "Envelope")
    ]


def direction(kind: type) -> str:
    """Return who sends a message to whom, as its docstring says it; empty where it does not."""
    said = _DIRECTION.search(" ".join(read_docstring(kind).text.split()))
    return said[0][:1].upper() + said[0][1:] if said else ""


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for module in modules():
        parts.append(f"## {module.__name__}\n")
        parts.append(read_docstring(module).text + "\n")
        messages = [kind for kind in structs(module) if issubclass(kind, Message)]
        rows = [(f"[{code(kind.__name__)}](#{kind.__name__.lower()})", direction(kind)) for kind in messages]
        parts.append(table(["message", "who to whom"], rows))
        parts += [_describe(kind) for kind in structs(module)]
    parts.append("## Types of fields\n")
    parts.append(table(["type", "what a decoder takes"], sorted(field_types().items())))
    return "\n".join(parts)


def field_types() -> dict[str, str]:
    """Return the named types of `transport.fields` with their limits."""
    types = {}
    for name, value in vars(fields).items():
        limits = getattr(value, "__metadata__", None)
        if limits:
            base = getattr(value, "__origin__", value)
            types[code(name)] = f"{_type_name(base)}; {_limits(limits[0])}"
    return types


def _type_name(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) else "a list of sizes"


def _limits(meta: msgspec.Meta) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "max_length": "length at most"}
    said = [f"{text} {getattr(meta, name)}" for name, text in words.items() if getattr(meta, name) is not None]
    if meta.pattern:
        said.append(f"matching {code(meta.pattern)}")
    return ", ".join(said)


def _describe(kind: type[msgspec.Struct]) -> str:
    doc = read_docstring(kind)
    parts = [f"### {kind.__name__}\n", doc.text + "\n"]
    rows = []
    for field in msgspec.structs.fields(kind):
        text = kind.__annotations__.get(field.name) or next(
            base.__annotations__[field.name]
            for base in kind.__mro__
            if field.name in getattr(base, "__annotations__", {})
        )
        rows.append((code(field.name), code(_annotation(text)), _default(field), doc.fields.get(field.name, "")))
    if issubclass(kind, Message):
        tensors = [(code(name), *_tensor(declared)) for name, declared in kind.tensors.declared.items()]
        parts += [table(["tensors", "dtype", "shape", "how many"], tensors) + "\n"] if tensors else []
    if not rows:
        return "\n".join(parts)
    header = ["field", "type", "default", "what it says"]
    if not any(row[3] for row in rows):
        header, rows = header[:3], [row[:3] for row in rows]
    return "\n".join([*parts, table(header, rows)])


def _tensor(declared: TensorSpec | Optional | Several) -> tuple[str, str, str]:
    """Return dtypes, shape and number of a declared tensor as text."""
    spec = declared if isinstance(declared, TensorSpec) else declared.spec
    dtypes = (spec.dtypes,) if isinstance(spec.dtypes, torch.dtype) else spec.dtypes
    shape = ["..." if size is ... else "any" if size is None else str(size) for size in spec.shape]
    count = "one"
    if isinstance(declared, Several):
        count = f"{declared.least} to {declared.most}"
    elif isinstance(declared, Optional):
        count = "one or none"
    return ", ".join(DTYPE_NAMES[dtype] for dtype in dtypes), ", ".join(shape), count


def _annotation(text: Any) -> str:
    text = text if isinstance(text, str) else getattr(text, "__name__", str(text))
    return re.sub(r"^Annotated\[(.*), Meta\((.*)\)\]$", r"\1, \2", text)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is not msgspec.NODEFAULT:
        return code(repr(field.default))
    return "" if field.default_factory is msgspec.NODEFAULT else code(repr(field.default_factory()))
