"""The tensors of a message: their names, dtypes and dimensions, declared once with the message's class.

Names do not travel. A header lists the tensors in the order of the declaration, an optional one that is absent as nil;
a message has at most one group, whose size follows from the number of entries. Whoever decodes the message checks all
that the declaration says, so that no other place needs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType, MappingProxyType
from typing import Any, TypeAlias

import msgspec
import torch

from splitsec.errors import MessageError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ITEM_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
MAX_TENSORS = 4096
# By name a tensor, or a list of tensors for a group; an optional tensor that is absent has no entry, or None.
NamedTensors: TypeAlias = Mapping[str, Any]
NO_TENSORS: NamedTensors = MappingProxyType({})
# A size, a name of sizes that must be equal within a message, None for any size; a last `...` for any further ones.
Dimension: TypeAlias = int | str | EllipsisType | None


class TensorInfo(msgspec.Struct, frozen=True, array_like=True):
    """dtype name and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that must be there.

    Attributes:
        dtypes: the dtype, or those that it may have.
        shape: its dimensions.
    """

    dtypes: torch.dtype | tuple[torch.dtype, ...]
    shape: tuple[Dimension, ...] = (...,)


@dataclass(frozen=True)
class Optional:
    """A tensor that may be absent."""

    spec: TensorSpec


@dataclass(frozen=True)
class Several:
    """A group: from `least` to `most` tensors of one description."""

    spec: TensorSpec
    least: int = 0
    most: int = MAX_TENSORS


class _Slot:
    """One name of a declaration, ready to be compared with what a header says."""

    def __init__(self, name: str, declared: TensorSpec | Optional | Several) -> None:
        spec = declared if isinstance(declared, TensorSpec) else declared.spec
        dtypes = (spec.dtypes,) if isinstance(spec.dtypes, torch.dtype) else spec.dtypes
        self.name = name
        self.optional = isinstance(declared, Optional)
        self.group = declared if isinstance(declared, Several) else None
        self._dtypes = tuple(DTYPE_NAMES[dtype] for dtype in dtypes)
        self._open = spec.shape[-1:] == (...,)
        self._shape = tuple(size for size in spec.shape if not isinstance(size, EllipsisType))

    def check(self, kind: str, info: TensorInfo, sizes: dict[str, int]) -> None:
        """Raise `MessageError` for another dtype or shape; note the sizes that have names."""
        if info.dtype not in self._dtypes:
            raise MessageError(f"{kind}: {self.name} has dtype {info.dtype}, expected {' or '.join(self._dtypes)}")
        shape, expected = info.shape, self._shape
        fits = len(shape) == len(expected) or (self._open and len(shape) > len(expected))
        for size, dimension in zip(shape, expected, strict=False):
            if dimension is None or size == dimension:
                continue
            if not isinstance(dimension, str) or sizes.setdefault(dimension, size) != size:
                fits = False
        if not fits:
            raise MessageError(f"{kind}: {self.name} has shape {shape_text(info.shape)}, expected {self._text(sizes)}")

    def _text(self, sizes: Mapping[str, int]) -> str:
        known = [sizes.get(size, None) if isinstance(size, str) else size for size in self._shape]
        return shape_text(known) + ("x..." if self._open else "")


class Tensors:
    """The tensors of one class of messages, by name, in the order in which they travel."""

    def __init__(self, **declared: TensorSpec | Optional | Several) -> None:
        self._slots = [_Slot(name, spec) for name, spec in declared.items()]
        groups = [slot for slot in self._slots if slot.group is not None]
        if len(groups) > 1:
            raise ValueError("a message has at most one group of tensors")
        self.declared = declared
        self.group = groups[0].name if groups else None

    def in_order(self, kind: str, tensors: NamedTensors) -> list[torch.Tensor | None]:
        """Return the tensors of a message as a header lists them.

        Args:
            kind: the message's class, for errors.

        Raises:
            MessageError: one is missing, or not declared.
        """
        if not tensors.keys() <= self.declared.keys():
            unknown = ", ".join(sorted(tensors.keys() - self.declared.keys()))
            raise MessageError(f"{kind}: {unknown} is not declared, {self._names} are")
        if not self._slots:
            return []
        flat: list[torch.Tensor | None] = []
        for slot in self._slots:
            if slot.group is not None:
                flat += tensors.get(slot.name, ())
                continue
            tensor = tensors.get(slot.name)
            if tensor is None and not slot.optional:
                raise MessageError(f"{kind}: {slot.name} is missing")
            flat.append(tensor)
        return flat

    def names_of(self, kind: str, infos: Sequence[TensorInfo | None]) -> list[str]:
        """Check what a header says of its tensors; return the name of each.

        Raises:
            MessageError: one is missing or superfluous, or has another dtype or shape than is declared.
        """
        slots = self._slots
        if self.group is not None:
            slots = self._with_group(kind, len(infos))
        if len(infos) != len(slots):
            raise MessageError(f"{kind}: {len(infos)} tensors, expected {len(slots)} ({self._names})")
        sizes: dict[str, int] = {}
        for slot, info in zip(slots, infos, strict=True):
            if info is not None:
                slot.check(kind, info, sizes)
            elif not slot.optional:
                raise MessageError(f"{kind}: {slot.name} is missing")
        return [slot.name for slot in slots]

    def _with_group(self, kind: str, count: int) -> list[_Slot]:
        """Return a slot for each of `count` tensors, that of the group as often as it has tensors."""
        slots: list[_Slot] = []
        for slot in self._slots:
            times = 1
            if slot.group is not None:
                times = count - len(self._slots) + 1
                if not slot.group.least <= times <= slot.group.most:
                    expected = f"{slot.group.least} to {slot.group.most}"
                    raise MessageError(f"{kind}: {slot.name} has {max(0, times)} tensors, expected {expected}")
            slots += [slot] * times
        return slots

    @property
    def _names(self) -> str:
        return ", ".join(self.declared) or "none"


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape as people write it, such as 3x8x8."""
    return "x".join("any" if size is None else str(size) for size in shape) or "()"
