"""Comparing the segments of a cut model with the model: outputs, gradients and changed buffers, in all modes.

Whatever makes the segments may lose something that the model does. So they are run beside it on a few rows and refused
if they give other results, so that wrong results are never silent. Nothing here depends on how segments are made.
"""

from __future__ import annotations

import copy
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from splitsec.cut.results import describe_result, one_tensor
from splitsec.cut.state import as_it_was, state_tensors
from splitsec.errors import CutError, first_line
from splitsec.tensors import dtype_name, shape_text

log = logging.getLogger(__name__)
Mode: TypeAlias = Literal["eval", "training"]

ROWS = 3
# Models of more weights take long enough with the two rows that batch norm needs.
_LARGE = 2**25
# Fractions of the largest value. Values that differ by less than `_NEAR` are the same; others are compared again in
# double precision, where no rounding explains more than `_EXACT`; where that cannot be, by `_FAR`.
_NEAR, _EXACT, _FAR = 1e-5, 1e-7, 1e-2
# Two calls of one model, whose rounding may depend on the order of threads.
_REPEATED = 1e-4
# Gradients that are zero but for rounding are compared with the largest of all.
_SMALL = 1e-3
_SEED = 20240229


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
    both = _Comparison(model, segments, _rows(sample, 2 if large else ROWS), cut)
    settings: tuple[tuple[Mode, bool], ...] = (("eval", True), ("training", True), ("eval", False))
    with both.put_back(), torch.inference_mode(mode=False), torch.enable_grad():
        if not both.repeats():
            log.warning("%s gives other results at each call; its cut is not checked", type(model).__name__)
            return False
        for mode, gradients in settings:
            torch.set_grad_enabled(gradients)
            try:
                difference = both.difference(mode, _NEAR)
            except _SampleError as error:
                if mode == "training":
                    # Such as layers that need more rows in training: no training then, of the model either.
                    log.info("not checked in training mode: %s", error)
                    continue
                where = _input_kind(sample) if gradients else "without gradients (torch.no_grad()), as predictions do"
                verb = "take" if gradients else "run"
                raise CutError(f"{type(model).__name__} cannot {verb} {where}: {error}") from error
            if difference is not None and both.is_real(mode):
                reason = f"{difference}{both.where_it_begins(mode)}"
                raise CutError(
                    f"the model cut at '{cut}' is not the model: {_advice(reason, mode, gradients=gradients)}"
                )
    return True


def _input_kind(sample: torch.Tensor) -> str:
    return f"inputs of shape {shape_text(sample.shape[1:])} ({dtype_name(sample)}), without the batch dimension"


def _advice(reason: str, mode: Mode, *, gradients: bool) -> str:
    if gradients:
        return (
            f"in {mode} mode {reason}; forward does something that a cut loses, such as a test of types "
            "(isinstance(x, torch.Tensor)) or a backward of its own: write it with torch functions, or put it into an "
            "nn.Module of its own, which is then called as it is"
        )
    return (
        f"in eval mode without gradients, as predictions run, {reason}; its forward asks whether gradients are on "
        "(torch.is_grad_enabled()), which a cut does not: let it do the same in both, or ask for self.training in an "
        "nn.Module of its own"
    )


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


def _seed() -> None:
    random.seed(_SEED)
    torch.manual_seed(_SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(_SEED)


@dataclass(frozen=True)
class _Outcome:
    """The output of a run, the gradients by name (None where there is none), and the buffers afterwards."""

    output: torch.Tensor
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Comparison:
    """A model and its segments, which are run on the same rows `x`."""

    model: nn.Module
    segments: Sequence[nn.Module]
    x: torch.Tensor
    cut: str

    @contextmanager
    def put_back(self, *, values: bool = False) -> Iterator[None]:
        """Put back at the end of the block what `as_it_was` does, of the model and of all segments."""
        with ExitStack() as stack:
            for module in (self.model, *self.segments):
                stack.enter_context(as_it_was(module, values=values))
            yield

    def repeats(self) -> bool:
        """Say whether the model in eval mode gives the same for the same input and random numbers.

        Raises:
            CutError: it does so from the same state alone: it remembers earlier calls.
        """
        with as_it_was(self.model, values=True):
            self.model.eval()
            with as_it_was(self.model, values=True):
                first, second = self._output(), self._output()
                if first is None or second is None or _distance(first, second) <= _REPEATED:
                    return True
                changed = self._changed_by_a_call()
            again = self._output()
            assert again is not None
        if _distance(first, again) > _REPEATED:
            return False
        what = f"'{changed[0]}' changes" if changed else "something that forward keeps changes"
        raise CutError(
            f"{type(self.model).__name__} gives other results for the same input when it is called again in eval mode "
            f"({what} with every call), so no prediction at cut '{self.cut}' would be that of the model; change it in "
            "training only"
        )

    def _output(self) -> torch.Tensor | None:
        _seed()
        with torch.no_grad():
            try:
                output = one_tensor(self.model(self.x.clone()))
            except Exception:  # the user's model: what it cannot take is reported with the comparison
                return None
        return output if isinstance(output, torch.Tensor) else None

    def _changed_by_a_call(self) -> list[str]:
        """Return the names of buffers and tensor attributes that another call changes."""
        before = {name: value.detach().clone() for name, value in state_tensors(self.model)}
        with torch.no_grad():
            self.model(self.x.clone())
        return [
            name
            for name, value in state_tensors(self.model)
            if name in before and not (before[name].shape == value.shape and torch.equal(before[name], value))
        ]

    def difference(self, mode: Mode, tolerance: float) -> str | None:
        """Say how the segments differ from the model in a mode; None if they do not."""
        for module in (self.model, *self.segments):
            module.train(mode == "training")
        parameters = dict(self.model.named_parameters())
        shared = [item for segment in self.segments for item in segment.named_parameters(remove_duplicate=False)]
        with self.put_back(values=True):
            try:
                expected = self._run(lambda x: one_tensor(self.model(x)), parameters)
            except Exception as error:  # the user's model raises what it likes
                raise _SampleError(first_line(error)) from error
        with self.put_back(values=True):
            try:
                actual = self._run(self._through, dict(shared))
            except CutError:
                raise
            except Exception as error:
                raise CutError(
                    f"the model cut at '{self.cut}' fails where {type(self.model).__name__} runs, in {mode} mode: "
                    f"{first_line(error)}; choose another cut"
                ) from error
        return (
            _output_difference(expected.output, actual.output, tolerance)
            or _buffer_difference(expected.buffers, actual.buffers, tolerance)
            or _gradient_difference(expected.gradients, actual.gradients, tolerance)
        )

    def _through(self, x: torch.Tensor) -> Any:
        value: Any = x
        for segment in self.segments:
            if value is not x:
                check_batch(value, x, self.cut)
                if not value.is_floating_point():
                    raise CutError(
                        f"the value at cut '{self.cut}' is of {dtype_name(value)}, not of real numbers; choose another "
                        "cut"
                    )
            value = segment(value)
        return value

    def _run(self, call: Callable[[torch.Tensor], Any], parameters: Mapping[str, nn.Parameter]) -> _Outcome:
        leaf = self.x.clone().requires_grad_(self.x.is_floating_point())
        _seed()
        # A copy, since a forward may work in place on its input.
        output = call(leaf.clone())
        if not isinstance(output, torch.Tensor):
            raise CutError(
                f"{type(self.model).__name__} returns {describe_result(output)}; a model to be cut returns one tensor"
            )
        buffers = {name: value.detach().clone() for name, value in self.model.named_buffers()}
        # The input's name is empty.
        values = {"": leaf, **parameters}
        values = {name: value for name, value in values.items() if value.requires_grad}
        gradients: Sequence[torch.Tensor | None] = [None] * len(values)
        if output.requires_grad and output.is_floating_point() and values:
            # Another weight for each element, so that none cancel.
            weights = torch.cos(torch.arange(output.numel(), device=output.device) * 1.7).view_as(output)
            loss = (output.float() * weights).sum()
            gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        return _Outcome(output.detach(), dict(zip(values, gradients, strict=True)), buffers)

    def is_real(self, mode: Mode) -> bool:
        """Say whether a difference is more than rounding: it is still there in double precision."""
        try:
            model, segments = copy.deepcopy((self.model, list(self.segments)))
            for module in (model, *segments):
                module.double()
            wide = self.x.double() if self.x.is_floating_point() else self.x
            return _Comparison(model, segments, wide, self.cut).difference(mode, _EXACT) is not None
        except Exception as error:  # a model that holds what cannot be copied, or that insists on its precision
            log.debug("no comparison in double precision: %s", first_line(error))
            return self.difference(mode, _FAR) is not None

    def where_it_begins(self, mode: Mode) -> str:
        """Name the first layer whose input is another than in the model; nothing if there is none."""

        def through(value: torch.Tensor) -> Any:
            for segment in self.segments:
                value = segment(value)
            return value

        calls = zip(self._layer_inputs(self.model, mode), self._layer_inputs(through, mode), strict=False)
        for (path, expected), (other, actual) in calls:
            if path != other or _distance(expected, actual) > _NEAR:
                kind = type(self.model.get_submodule(path)).__name__
                return f" (the first layer that is given another value is '{path}', {kind})"
        return ""

    def _layer_inputs(self, run: Callable[[torch.Tensor], Any], mode: Mode) -> list[tuple[str, torch.Tensor]]:
        """Return the paths of the layers that a run calls, in order, each with its input."""
        inputs: list[tuple[str, torch.Tensor]] = []

        def note(path: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], torch.Tensor):
                inputs.append((path, args[0].detach().clone()))

        with self.put_back(values=True), torch.no_grad():
            for module in (self.model, *self.segments):
                module.train(mode == "training")
            for path, module in self.model.named_modules():
                # Compiled layers take no hooks.
                if path and not any(module.children()) and not isinstance(module, torch.jit.ScriptModule):
                    module.register_forward_pre_hook(partial(note, path))
            _seed()
            run(self.x.clone())
        return inputs


def _output_difference(expected: torch.Tensor, actual: torch.Tensor, tolerance: float) -> str | None:
    if expected.shape != actual.shape:
        return f"it returns shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    return f"its output differs {_by(expected, actual)}" if _distance(expected, actual) > tolerance else None


def _buffer_difference(
    expected: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor], tolerance: float
) -> str | None:
    for name, value in expected.items():
        if name in actual and _distance(value, actual[name]) > tolerance:
            return f"its buffer '{name}' becomes another value"
    return None


def _gradient_difference(
    expected: Mapping[str, torch.Tensor | None], actual: Mapping[str, torch.Tensor | None], tolerance: float
) -> str | None:
    floor = _SMALL * max(map(_largest, expected.values()), default=0.0)
    for name, gradient in expected.items():
        other = actual.get(name)
        what = f"the gradient with respect to {repr(name) if name else 'the input'}"
        if gradient is None and _largest(other):
            return f"{what} is not zero, which has none in the model"
        if other is None and _largest(gradient):
            return f"{what} is none, which has one in the model"
        if gradient is not None and other is not None and _distance(gradient, other, floor) > tolerance:
            turned = _distance(gradient, -other, floor) <= tolerance
            return f"{what} {'has the other sign' if turned else f'differs {_by(gradient, other)}'}"
    return None


def _largest(value: torch.Tensor | None) -> float:
    return 0.0 if value is None or not value.numel() else float(value.abs().max())


def _distance(expected: torch.Tensor, actual: torch.Tensor, floor: float = 0.0) -> float:
    """Return the largest difference as a fraction of the largest expected magnitude, or of `floor` if that is larger.

    Values that are not finite agree with their like.
    """
    if expected.shape != actual.shape:
        return float("inf")
    first, second = expected.double(), actual.double()
    if not first.numel() or torch.equal(first, second):
        return 0.0
    same = (first == second) | (first.isnan() & second.isnan())
    if not (first.isfinite() | same).all() or not (second.isfinite() | same).all():
        return float("inf")
    scale = max(float(first.nan_to_num(0, 0, 0).abs().max()), floor)
    apart = float((first.masked_fill(same, 0) - second.masked_fill(same, 0)).abs().max())
    return apart / scale if scale else float("inf")


def _by(expected: torch.Tensor, actual: torch.Tensor) -> str:
    off = float((expected.double() - actual.double()).abs().max())
    return f"by {off:.3g}, of values up to {float(expected.double().abs().max()):.3g}"
