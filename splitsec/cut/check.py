"""Comparing the segments of a cut model with the model: outputs, gradients and changed buffers, in all modes.

Whatever makes the segments may lose something that the model does. So they are run beside it on a few rows, and are
refused if they are not the same: wrong results are never silent. Nothing here knows how segments are made.
"""

from __future__ import annotations

import copy
import logging
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from splitsec.cut.results import describe_result, one_tensor
from splitsec.cut.state import as_it_was, state_tensors
from splitsec.errors import CutError, first_line

log = logging.getLogger(__name__)

ROWS = 3
# Models of more weights take long enough with the two rows that batch norm needs.
_LARGE = 2**25
# Of the largest value: what is closer is the same. Beyond `_NEAR` the comparison is repeated in double precision, where
# rounding is out of the question; where that cannot be, only what is beyond `_FAR` is another result.
_NEAR, _EXACT, _FAR = 1e-5, 1e-7, 1e-2
# Two calls of one model, whose rounding may depend on the order of threads.
_REPEATED = 1e-4
# Gradients that are zero but for rounding are compared with the largest of all.
_SMALL = 1e-3
_SEED = 20240229


@dataclass(frozen=True)
class _Run:
    """What came of one run: the output, gradients by name (None where there is none), buffers afterwards."""

    output: torch.Tensor
    gradients: dict[str, torch.Tensor | None]
    state: dict[str, torch.Tensor]


class _SampleError(Exception):
    """The model itself cannot run."""


def check_split(model: nn.Module, segments: Sequence[nn.Module], sample: torch.Tensor, *, cut: str) -> bool:
    """Compare segments that share a model's parameters, run one after the other, with the model.

    They are compared in eval mode, in training mode, and in eval mode without gradients, as predictions run. Modes,
    buffers, attributes and random generators are put back. It costs about eight forward passes of `ROWS` rows.

    Args:
        sample: inputs of the model, (N, ...); the first rows are used.
        cut: as messages call it.

    Returns:
        Whether they could be compared: not if the model gives other results at each call by itself.

    Raises:
        CutError: they differ (names what, by how much, in which mode, and where it begins), or the model cannot run on
            the sample, or remembers earlier calls in eval mode.
    """
    large = sum(value.numel() for value in model.parameters()) > _LARGE
    x = _rows(sample, 2 if large else ROWS)
    with _kept(model, segments), torch.inference_mode(False), torch.enable_grad():
        if not _repeats(model, x, cut):
            log.warning("%s gives other results at each call; its cut is not checked", type(model).__name__)
            return False
        for mode, gradients in ((False, True), (True, True), (False, False)):
            torch.set_grad_enabled(gradients)
            try:
                problem = _compare(model, segments, x, cut, mode, _NEAR)
            except _SampleError as error:
                if not gradients:
                    raise CutError(
                        f"{type(model).__name__} cannot run without gradients (torch.no_grad()), as predictions do: "
                        f"{error}"
                    ) from error
                if mode:
                    # Such as layers that need more rows in training: no training then, of the model either.
                    log.info("not checked in training mode: %s", error)
                    continue
                shape = "x".join(map(str, sample.shape[1:]))
                kind = str(sample.dtype).removeprefix("torch.")
                raise CutError(
                    f"{type(model).__name__} cannot take inputs of shape {shape} ({kind}), without the batch "
                    f"dimension: {error}"
                ) from error
            if problem is not None and _is_real(model, segments, x, cut, mode):
                begins = _where_it_begins(model, segments, x, mode)
                if not gradients:
                    raise CutError(
                        f"the model cut at '{cut}' is not the model: in eval mode without gradients, as predictions "
                        f"run, {problem}{begins}; its forward asks whether gradients are on (torch.is_grad_enabled()), "
                        "which a cut does not: let it do the same in both, or ask for self.training in an nn.Module "
                        "of its own"
                    )
                raise CutError(
                    f"the model cut at '{cut}' is not the model: in {'training' if mode else 'eval'} mode {problem}"
                    f"{begins}; forward does something that a cut loses, such as a test of types "
                    "(isinstance(x, torch.Tensor)) or a backward of its own: write it with torch functions, or put it "
                    "into an nn.Module of its own, which is then called as it is"
                )
    return True


def check_batch(activation: Any, x: torch.Tensor, cut: str) -> None:
    """Raise `CutError` unless the value at a cut is a tensor with one row for each of its input's."""
    if not isinstance(activation, torch.Tensor):
        raise CutError(f"the value at cut '{cut}' is {describe_result(activation)} and no tensor; choose another cut")
    if activation.shape[:1] != x.shape[:1]:
        raise CutError(
            f"at cut '{cut}' {len(x)} samples become {tuple(activation.shape)}: the batch must stay the first "
            "dimension; choose another"
        )


def _rows(sample: torch.Tensor, count: int) -> torch.Tensor:
    if not len(sample):
        raise CutError("a sample needs at least one row")
    x = sample[:count].detach().clone()
    # Batch norm needs two.
    return torch.cat([x, x]) if len(x) == 1 else x


@contextmanager
def _kept(model: nn.Module, segments: Sequence[nn.Module], *, values: bool = False) -> Iterator[None]:
    with ExitStack() as stack:
        for module in (model, *segments):
            stack.enter_context(as_it_was(module, values=values))
        yield


def _seed() -> None:
    random.seed(_SEED)
    torch.manual_seed(_SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(_SEED)


def _repeats(model: nn.Module, x: torch.Tensor, cut: str) -> bool:
    """Whether the model in eval mode gives the same for the same input and random numbers.

    Raises:
        CutError: it does only from the same state: it remembers earlier calls.
    """

    def call() -> torch.Tensor | None:
        _seed()
        with torch.no_grad():
            try:
                found = one_tensor(model(x.clone()))
            except Exception:  # the user's model: what it cannot take is reported with the comparison
                return None
        return found if isinstance(found, torch.Tensor) else None

    with _kept(model, (), values=True):
        model.eval()
        with as_it_was(model, values=True):
            first, second = call(), call()
            if first is None or second is None or _differ(first, second, 0.0) <= _REPEATED:
                return True
            changed = _changed(model, x)
        again = call()
        assert again is not None
    if _differ(first, again, 0.0) > _REPEATED:
        return False
    what = f"'{changed[0]}' changes" if changed else "something that forward keeps changes"
    raise CutError(
        f"{type(model).__name__} gives other results for the same input when it is called again in eval mode ({what} "
        f"with every call), so no prediction at cut '{cut}' would be that of the model; change it in training only"
    )


def _changed(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Names of buffers and tensor attributes that another call changes."""
    before = {name: value.detach().clone() for name, value in state_tensors(model)}
    with torch.no_grad():
        model(x.clone())
    return [
        name
        for name, value in state_tensors(model)
        if name in before and not (before[name].shape == value.shape and torch.equal(before[name], value))
    ]


def _compare(
    model: nn.Module, segments: Sequence[nn.Module], x: torch.Tensor, cut: str, mode: bool, tolerance: float
) -> str | None:
    """How the segments differ from the model in one mode, or None."""
    for module in (model, *segments):
        module.train(mode)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    held = {name: value for one in segments for name, value in one.named_parameters(remove_duplicate=False)}
    with _kept(model, segments, values=True):
        try:
            expected = _run(model, lambda value: one_tensor(model(value)), x, parameters)
        except Exception as error:  # the user's model raises what it likes
            raise _SampleError(first_line(error)) from error
    with _kept(model, segments, values=True):
        try:
            found = _run(model, lambda value: _through(segments, value, cut), x, held)
        except CutError:
            raise
        except Exception as error:
            raise CutError(
                f"the model cut at '{cut}' fails where {type(model).__name__} runs, in "
                f"{'training' if mode else 'eval'} mode: {first_line(error)}; choose another cut"
            ) from error
    return _problem(expected, found, tolerance)


def _through(segments: Sequence[nn.Module], x: torch.Tensor, cut: str) -> Any:
    value: Any = x
    for segment in segments:
        if value is not x:
            check_batch(value, x, cut)
            if not value.is_floating_point():
                kind = str(value.dtype).removeprefix("torch.")
                raise CutError(f"the value at cut '{cut}' is of {kind}, not of real numbers; choose another cut")
        value = segment(value)
    return value


def _run(
    model: nn.Module, call: Callable[[torch.Tensor], Any], x: torch.Tensor, parameters: dict[str, nn.Parameter]
) -> _Run:
    leaf = x.clone().requires_grad_(x.is_floating_point())
    _seed()
    # A copy, since a forward may work in place on its input.
    output = call(leaf.clone())
    if not isinstance(output, torch.Tensor):
        raise CutError(
            f"{type(model).__name__} returns {describe_result(output)}; a model to be cut returns one tensor"
        )
    state = {name: value.detach().clone() for name, value in model.named_buffers()}
    wanted = {name: value for name, value in parameters.items() if value.requires_grad}
    names, values = ["", *wanted], [leaf, *wanted.values()]
    if not x.is_floating_point():
        names, values = names[1:], values[1:]
    gradients: Sequence[torch.Tensor | None] = [None] * len(values)
    if output.requires_grad and output.is_floating_point() and values:
        # Another weight for each element, so that none cancel.
        weights = torch.cos(torch.arange(output.numel(), device=output.device) * 1.7).view_as(output)
        gradients = torch.autograd.grad((output.float() * weights).sum(), values, allow_unused=True)
    return _Run(output.detach(), dict(zip(names, gradients, strict=True)), state)


def _problem(expected: _Run, found: _Run, tolerance: float) -> str | None:
    if expected.output.shape != found.output.shape:
        return f"it returns shape {tuple(found.output.shape)} instead of {tuple(expected.output.shape)}"
    if _differ(expected.output, found.output, 0.0) > tolerance:
        return f"its output differs {_by(expected.output, found.output)}"
    for name, value in expected.state.items():
        if name in found.state and _differ(value, found.state[name], 0.0) > tolerance:
            return f"its buffer '{name}' becomes another value"
    largest = max((_largest(value) for value in expected.gradients.values()), default=0.0)
    for name, gradient in expected.gradients.items():
        other = found.gradients.get(name)
        what = f"the gradient of '{name}'" if name else "the gradient by the input"
        if gradient is None and other is None:
            continue
        if gradient is None:
            if _largest(other):
                return f"{what} is not zero, which has none in the model"
        elif other is None:
            if _largest(gradient):
                return f"{what} is none, which has one in the model"
        elif _differ(gradient, other, _SMALL * largest) > tolerance:
            turned = _differ(gradient, -other, _SMALL * largest) <= tolerance
            return f"{what} {'has the other sign' if turned else f'differs {_by(gradient, other)}'}"
    return None


def _largest(value: torch.Tensor | None) -> float:
    return 0.0 if value is None or not value.numel() else float(value.abs().max())


def _differ(expected: torch.Tensor, found: torch.Tensor, floor: float) -> float:
    """The largest difference, of the largest magnitude or `floor`; values that are not finite agree with their like."""
    if expected.shape != found.shape:
        return float("inf")
    one, other = expected.double(), found.double()
    if not one.numel() or torch.equal(one, other):
        return 0.0
    same = (one == other) | (one.isnan() & other.isnan())
    if not (one.isfinite() | same).all() or not (other.isfinite() | same).all():
        return float("inf")
    one, other = one.masked_fill(same, 0), other.masked_fill(same, 0)
    scale = max(float(expected.double().nan_to_num(0, 0, 0).abs().max()), floor)
    return float((one - other).abs().max()) / scale if scale else float("inf")


def _by(expected: torch.Tensor, found: torch.Tensor) -> str:
    off = float((expected.double() - found.double()).abs().max())
    return f"by {off:.3g}, of values up to {float(expected.double().abs().max()):.3g}"


def _is_real(model: nn.Module, segments: Sequence[nn.Module], x: torch.Tensor, cut: str, mode: bool) -> bool:
    """Whether a difference is more than rounding: it is still there in double precision."""
    try:
        model, segments = copy.deepcopy((model, list(segments)))
        for module in (model, *segments):
            module.double()
        wide = x.double() if x.is_floating_point() else x
        return _compare(model, segments, wide, cut, mode, _EXACT) is not None
    except Exception as error:  # a model that holds what cannot be copied, or that insists on its precision
        log.debug("no comparison in double precision: %s", first_line(error))
        return _compare(model, segments, x, cut, mode, _FAR) is not None


def _where_it_begins(model: nn.Module, segments: Sequence[nn.Module], x: torch.Tensor, mode: bool) -> str:
    """The first layer that is given another value than in the model, in words; nothing if none is."""

    def calls(run: Callable[[torch.Tensor], Any]) -> list[tuple[str, torch.Tensor]]:
        seen: list[tuple[str, torch.Tensor]] = []

        def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
                if args and isinstance(args[0], torch.Tensor):
                    seen.append((path, args[0].detach().clone()))

            return note

        with _kept(model, segments, values=True), torch.no_grad():
            for module in (model, *segments):
                module.train(mode)
            for path, module in model.named_modules():
                # Compiled layers take no hooks.
                if path and not any(module.children()) and not isinstance(module, torch.jit.ScriptModule):
                    module.register_forward_pre_hook(watch(path))
            _seed()
            run(x.clone())
        return seen

    def through(value: torch.Tensor) -> Any:
        for segment in segments:
            value = segment(value)
        return value

    for (path, expected), (other, found) in zip(calls(model), calls(through), strict=False):
        if path != other or _differ(expected, found, 0.0) > _NEAR:
            kind = type(model.get_submodule(path)).__name__
            return f" (the first layer that is given another value is '{path}', {kind})"
    return ""
