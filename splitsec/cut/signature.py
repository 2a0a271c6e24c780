"""Models of several inputs or results, as models that take one tensor and return one.

All else in splitsec moves one tensor with a row for each sample. So several inputs travel side by side in one row, and
the model is given each again as it was: `model.py:make(numbers: 5, codes: 3 int64) -> logits` names a model's inputs
with the shape of one sample, and which of its results is meant.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from splitsec.cut.results import SeveralResultsError, describe_result
from splitsec.errors import CutError
from splitsec.tensors import dtype_name, shape_text

# One tensor (N, ...), or one for each of a model's arguments by its name.
Sample: TypeAlias = torch.Tensor | Mapping[str, torch.Tensor]
_DTYPES = {
    name: getattr(torch, name) for name in ("float32", "float64", "float16", "int64", "int32", "int16", "uint8", "bool")
}
# Whole numbers up to here have a real number of 32 bits each.
LARGEST_WHOLE = 2**24
_SUFFIX = re.compile(r"(?:\((?P<inputs>[^()]*(?:\(\)[^()]*)*)\))?\s*(?:->\s*(?P<output>[\w.]+))?\s*$")
_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*:\s*(?P<shape>\(\)|\d+(?:x\d+)*)(?:\s+(?P<dtype>\w+))?$")


@dataclass(frozen=True)
class Input:
    """One of a model's inputs: the name of its argument, and shape and dtype of one sample."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        """Return how many numbers a sample has."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "()"
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: {shape}{'' if self.dtype == torch.float32 else f' {kind}'}"


@dataclass(frozen=True)
class Signature:
    """A model's inputs, and which of its results is meant.

    Attributes:
        inputs: in the order in which a row holds them; empty for a model of one tensor.
        output: a key, an index or an attribute of what the model returns, such as `logits` or `0.mean`; empty for the
            only tensor in it.
    """

    inputs: tuple[Input, ...] = ()
    output: str = ""

    @staticmethod
    def split(source: str) -> tuple[str, Signature]:
        """Return a model's source without its signature, and the signature.

        Raises:
            CutError: the signature cannot be read (says which part).
        """
        match = _SUFFIX.search(source)
        assert match is not None  # it matches the empty end
        inputs = []
        for part in (match["inputs"] or "").split(",") if match["inputs"] is not None else []:
            known = _INPUT.match(part.strip())
            if known is None or (known["dtype"] or "float32") not in _DTYPES:
                raise CutError(
                    f"'{part.strip()}' is no input of a model: write NAME: SHAPE DTYPE, such as 'numbers: 5' or "
                    f"'input_ids: 16 int64'; dtypes are {', '.join(_DTYPES)}"
                )
            sizes = () if known["shape"] == "()" else tuple(int(size) for size in known["shape"].split("x"))
            inputs.append(Input(known["name"], sizes, _DTYPES[known["dtype"] or "float32"]))
        names = [given.name for given in inputs]
        if len(set(names)) != len(names):
            raise CutError(f"'{source}' names an input twice; name each once")
        return source[: match.start()].rstrip(), Signature(tuple(inputs), match["output"] or "")

    @staticmethod
    def of(values: Mapping[str, torch.Tensor], output: str = "") -> Signature:
        """Return the signature of a model that takes these values (N, ...), by the names of its arguments."""
        inputs = tuple(Input(name, tuple(value.shape[1:]), value.dtype) for name, value in values.items())
        for given in inputs:
            if given.dtype not in _DTYPES.values():
                raise CutError(f"input '{given.name}' is {given.dtype}; give {', '.join(_DTYPES)}")
        return Signature(inputs, output)

    def __str__(self) -> str:
        inputs = f"({', '.join(map(str, self.inputs))})" if self.inputs else ""
        return f"{inputs}{f' -> {self.output}' if self.output else ''}"

    def pack(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return inputs (N, ...) side by side: float32 (N, numbers of all); a single one as it is.

        Raises:
            CutError: an input is missing, unknown, of another shape, or holds a whole number that float32 does not.
        """
        names = [given.name for given in self.inputs]
        if sorted(values) != sorted(names):
            raise CutError(f"the inputs are {', '.join(values) or 'none'}; the model takes {', '.join(names)}")
        parts, rows = [], len(values[names[0]])
        for given in self.inputs:
            value = values[given.name]
            if tuple(value.shape) != (rows, *given.shape):
                raise CutError(
                    f"input '{given.name}' has shape {shape_text(value.shape)}, expected "
                    f"{shape_text((rows, *given.shape))}"
                )
            whole = not given.dtype.is_floating_point
            if whole and value.is_floating_point():
                raise CutError(f"input '{given.name}' is {dtype_name(value)}; give whole numbers")
            ends = (int(value.min()), int(value.max())) if whole and value.numel() else (0, 0)
            if max(-ends[0], ends[1]) > LARGEST_WHOLE:
                raise CutError(f"input '{given.name}' holds a number beyond {LARGEST_WHOLE}; number its codes from 0")
            if len(names) == 1:
                return value.long() if whole and given.dtype != torch.bool else value
            parts.append(value.reshape(rows, given.size).float())
        return torch.cat(parts, 1)

    def unpack(self, packed: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each input of rows (N, numbers of all), by its name."""
        if len(self.inputs) == 1:
            return {self.inputs[0].name: packed}
        values, start = {}, 0
        for given in self.inputs:
            value = packed[:, start : start + given.size]
            start += given.size
            if len(given.shape) != 1:
                value = value.unflatten(1, given.shape) if given.shape else value.squeeze(1)
            # Real numbers stay of the dtype that the model's weights have.
            values[given.name] = value if given.dtype.is_floating_point else value.to(given.dtype)
        return values

    def noise_like(self, packed: torch.Tensor, rows: int) -> torch.Tensor:
        """Return random inputs (rows, numbers of all), each as large as in `packed`, of which it tells nothing else."""
        generator = torch.Generator().manual_seed(0)
        parts = []
        if len(self.inputs) == 1:
            # It is of its own shape and dtype.
            (given,) = self.inputs
            flat = Signature((given, given)).noise_like(packed.flatten(1).repeat(1, 2), rows)[:, : given.size]
            return flat.reshape(rows, *given.shape).to(packed.dtype)
        for given, value in zip(self.inputs, packed.split([given.size for given in self.inputs], 1), strict=True):
            if given.dtype.is_floating_point:
                spread = 2.0 ** round(math.log2(max(1e-6, value.double().std(correction=0).item())))
                parts.append(torch.randn(rows, given.size, generator=generator) * spread)
            else:
                least, most = int(value.min()), int(value.max())
                parts.append(torch.randint(least, most + 1, (rows, given.size), generator=generator).float())
        return torch.cat(parts, 1)

    def sample(self, rows: int, seed: int = 0) -> torch.Tensor:
        """Return random inputs (rows, numbers of all): whole ones are 0 or 1, which masks and tables all take."""
        generator = torch.Generator().manual_seed(seed)
        parts = [
            torch.randn(rows, given.size, generator=generator)
            if given.dtype.is_floating_point
            else torch.randint(0, 2, (rows, given.size), generator=generator).float()
            for given in self.inputs
        ]
        if len(parts) == 1:
            (given,) = self.inputs
            return parts[0].reshape(rows, *given.shape).to(given.dtype)
        return torch.cat(parts, 1)


def signature_of(model: nn.Module) -> Signature:
    """Return the signature that a model was adapted to; an empty one for any other."""
    signature: Signature = getattr(type(model), "_splitsec_signature", Signature())
    return signature


def original(model: nn.Module) -> nn.Module:
    """Return the model that was adapted; any other as it is."""
    whole: nn.Module = getattr(type(model), "_splitsec_original", model)
    return whole


def adapt(model: nn.Module, signature: Signature) -> nn.Module:
    """Return a module of one tensor to one tensor that shares everything with a model: layers, weights and their names.

    The model itself stays as it is.

    Raises:
        CutError: it has no such arguments, requires others, or has hooks of its own.
    """
    if signature == Signature():
        return model
    kind = type(model)
    if model._forward_hooks or model._forward_pre_hooks:
        raise CutError(f"{kind.__name__} has hooks of its own and several inputs or results; put them on its layers")
    by_position = _check_arguments(model, signature) if signature.inputs else False
    own = vars(model).get("forward")

    def forward(self: nn.Module, packed: torch.Tensor) -> Any:
        call = own or kind.forward.__get__(self)
        if not signature.inputs:
            return choose(call(packed), signature.output, kind.__name__)
        values = signature.unpack(packed)
        result = call(*values.values()) if by_position else call(**values)
        return choose(result, signature.output, kind.__name__) if signature.output else result

    adapted_kind = type(
        kind.__name__,
        (kind,),
        {
            "forward": forward,
            "__module__": kind.__module__,
            "_splitsec_signature": signature,
            "_splitsec_original": model,
        },
    )
    adapted: nn.Module = object.__new__(adapted_kind)
    vars(adapted).update({name: value for name, value in vars(model).items() if name != "forward"})
    return adapted


def adapted_to(model: nn.Module, sample: Sample | None, output: str = "") -> tuple[nn.Module, torch.Tensor | None]:
    """Return a model that takes one tensor and returns one, and a sample for it.

    Args:
        sample: inputs (N, ...), or one for each argument of the model by its name.
        output: as `Signature.output`.
    """
    if not isinstance(sample, Mapping):
        return adapt(model, Signature(output=output)), sample
    known = signature_of(model)
    signature = known if known.inputs else Signature.of(sample, output)
    return (model if known.inputs else adapt(model, signature)), signature.pack(sample)


def _check_arguments(model: nn.Module, signature: Signature) -> bool:
    """Say whether a model takes its inputs by their position; raises `CutError` where it does not take them."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    kinds = {parameter.kind for parameter in parameters}
    by_name = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    given = [single.name for single in signature.inputs]
    if inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.POSITIONAL_ONLY in kinds:
        return not set(given) <= set(by_name)
    unknown = [name for name in given if name not in by_name]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise CutError(
            f"{type(model).__name__} has no argument '{unknown[0]}'; it takes {', '.join(by_name) or 'none'} "
            "(an npz file may call a single input 'images')"
        )
    missing = [name for name, parameter in by_name.items() if parameter.default is parameter.empty]
    missing = [name for name in missing if name not in given]
    if missing:
        raise CutError(
            f"{type(model).__name__} needs '{missing[0]}' too, and is given {', '.join(given)}; give all: "
            f"{', '.join(by_name)}"
        )
    return False


def choose(result: Any, path: str, kind: str) -> Any:
    """Return the part of a model's result that a path names: keys, indices or attributes with dots between.

    Args:
        kind: the model's class, for messages.

    Raises:
        CutError: there is no such part.
    """
    value = result
    for part in path.split("."):
        if isinstance(value, fx.Proxy) and part.isdigit():
            # What a layer returns is not known to torch.fx.
            value = operator.getitem(value, int(part))
        elif isinstance(value, fx.Proxy):
            # Only a run with values shows whether there is such a part: torch.export has one.
            raise SeveralResultsError(
                f"{kind} returns something in which nobody sees a '{path}'; give a sample of its inputs"
            )
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        elif part.isdigit() and isinstance(value, Sequence) and int(part) < len(value):
            value = value[int(part)]
        elif not isinstance(value, (Mapping, Sequence)) and hasattr(value, part):
            value = getattr(value, part)
        else:
            raise CutError(f"{kind} returns {describe_result(result)}, in which there is no '{path}'")
    return value
