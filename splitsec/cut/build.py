"""Building one segment of a model without the others."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import fx, nn

from splitsec.cut.signature import signature_of
from splitsec.cut.split import Cut, SplitModel
from splitsec.cut.tracer import input_name
from splitsec.cut.weights import load_part
from splitsec.errors import ConfigError, CutError, first_line
from splitsec.tensors import SAVE_WEIGHTS, read_tensors


class ConstantError(CutError):
    """A segment that only the whole model's construction can make, since it has values that no state dict holds."""


Part: TypeAlias = Literal["front", "tail", "head"]


def build_segment(
    make: Callable[[], nn.Module],
    cut: Cut,
    part: Part,
    *,
    weights: Path | Mapping[str, torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> fx.GraphModule:
    """Build one segment of a model on torch's meta device, so that the weights of the others are never there.

    Its `meta["cut"]` is the cut's name, `SplitModel.cut`, and `meta["whole"]` the names of the whole model's values.

    Args:
        make: makes the whole model.
        part: which segment.
        weights: a safetensors file or a state dict with at least this segment's values; others are not read from a
            file. Without it every layer starts from its own `reset_parameters`.

    Raises:
        ConstantError: the segment has constants that only the whole model's construction makes.
        CutError: as `SplitModel` does; weights that do not fit; or, without weights, parameters that no layer of the
            segment can set.
    """
    try:
        with torch.device("meta"):
            model = make()
    except (RuntimeError, NotImplementedError) as error:
        reason = first_line(error)
        raise ConstantError(f"the model needs its values while it is built: {reason}; build it whole") from error
    # Nothing can run on the meta device.
    split = SplitModel(model, cut, check=False)
    refuse_guessed(split, model)
    segment: fx.GraphModule | None = getattr(split, part)
    if segment is None:
        raise CutError(f"the cut '{split.cut}' has no {part}")
    segment.meta["cut"] = split.cut
    segment.meta["whole"] = tuple(model.state_dict())
    _refuse_constants(segment)
    tied = _tied(segment)
    segment.to_empty(device=device)
    for first, *others in tied:
        for other in others:
            path, _, name = other.rpartition(".")
            setattr(segment.get_submodule(path), name, segment.get_parameter(first))
    if weights is None:
        _reset(segment)
    else:
        load_part(segment, _read(weights, segment.state_dict()) if isinstance(weights, Path) else weights)
    return segment


def refuse_guessed(split: SplitModel, model: nn.Module) -> None:
    """Raise `CutError` for a model that is cut for inputs of one shape which nobody gave."""
    if split.exported and not signature_of(model).inputs:
        raise CutError(
            f"{type(model).__name__} is cut for inputs of one shape alone (torch.export); say which, behind its name: "
            f"MODEL({input_name(model)}: 16 int64), or 3x32x32 for images"
        )


def _tied(segment: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in segment.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _read(path: Path, keys: Container[str]) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file whose keys are among these."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key in keys}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError):
        # This says what the file is instead, or that it is not there.
        try:
            return read_tensors(path, "weights", SAVE_WEIGHTS)
        except ConfigError as error:
            raise CutError(str(error)) from None


def _refuse_constants(segment: fx.GraphModule) -> None:
    saved = segment.state_dict().keys()
    lost = [name for name, _ in segment.named_buffers() if name not in saved]
    lost += [name for name, value in vars(segment).items() if isinstance(value, torch.Tensor)]
    if lost:
        raise ConstantError(
            f"'{lost[0]}' is a constant that no state dict holds; build the whole model and take its segment"
        )


def _reset(segment: nn.Module) -> None:
    known: set[str] = set()
    with torch.no_grad():
        for path, module in segment.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                known |= {f"{path}.{name}" for name in module.state_dict()}
    left = sorted(set(segment.state_dict()) - known)
    if left:
        raise CutError(f"no layer sets '{left[0]}'; give weights, or build the whole model and take its segment")
