"""Follow a tensor through a run: every function of splitsec that it is handed to, in order, in all threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import zmq

import splitsec

PACKAGE = f"{Path(splitsec.__file__).parent}/"


@dataclass(frozen=True)
class Visit:
    """A function that was entered with the tensor (`entered`), or that returned it.

    Attributes:
        file: relative to the package.
        function: its qualified name.
        caller: the file of the function of splitsec that called it; empty where a thread began.
    """

    file: str
    function: str
    caller: str
    entered: bool


@dataclass
class Follower:
    """What has been seen of the tensors that are followed.

    Attributes:
        begin: the function whose first result after `start` is followed.
        derive: for functions that make another form of the tensor: what of their result is followed from then on.
        end: the function whose entry with the tensor ends it.
        thread: the name of the thread in which it begins.
        skip: how many results of `begin` are passed over.
    """

    begin: str
    derive: Mapping[str, Callable[[Any], torch.Tensor]]
    end: str
    thread: str
    skip: int = 0
    visits: list[Visit] = field(default_factory=list)
    done: bool = False
    _forms: list[torch.Tensor] = field(default_factory=list)
    _own: threading.local = field(default_factory=threading.local)

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        """Look at a call or a return; what `threading.setprofile` takes."""
        file = frame.f_code.co_filename
        if self.done or event not in ("call", "return") or not file.startswith(PACKAGE):
            return
        if getattr(self._own, "busy", False) or "<" in frame.f_code.co_qualname.rsplit(".", 1)[-1]:
            return
        self._own.busy = True
        try:
            self._look(frame, file.removeprefix(PACKAGE), entered=event == "call", result=result)
        finally:
            self._own.busy = False

    def _look(self, frame: FrameType, file: str, *, entered: bool, result: Any) -> None:
        function = frame.f_code.co_qualname
        if not self._forms:
            if entered or function != self.begin or threading.current_thread().name != self.thread:
                return
            if self.skip:
                self.skip -= 1
                return
            self._forms.append(result.detach().clone())
        if not entered and function in self.derive and result is not None:
            self._forms.append(self.derive[function](result).detach().clone())
        held = [value for name, value in frame.f_locals.items() if name != "self"] if entered else [result]
        if any(self._holds(value) for value in held):
            self.visits.append(Visit(file, function, _caller_of(frame), entered))
            self.done = entered and function == self.end

    def _holds(self, value: Any, depth: int = 0) -> bool:
        if isinstance(value, torch.Tensor):
            return any(
                value.shape == form.shape and value.dtype == form.dtype and torch.equal(value.detach(), form)
                for form in self._forms
            )
        if isinstance(value, (bytes, memoryview, zmq.Frame)):
            content = bytes(value.buffer if isinstance(value, zmq.Frame) else value)
            return any(content == form.numpy().tobytes() for form in self._forms)
        if depth > 4:
            return False
        if isinstance(value, Mapping):
            value = tuple(value.values())
        elif type(value).__name__ in ("Outgoing", "Arrived", "Incoming", "StepResult"):
            value = tuple(getattr(value, name) for name in value.__dataclass_fields__)
        return isinstance(value, (list, tuple)) and any(self._holds(part, depth + 1) for part in value)


@contextmanager
def following(follower: Follower) -> Iterator[Follower]:
    """Follow in every thread that is started inside."""
    threading.setprofile(follower)
    try:
        yield follower
    finally:
        threading.setprofile(None)


def _caller_of(frame: FrameType) -> str:
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
        caller = caller.f_back
    return caller.f_code.co_filename.removeprefix(PACKAGE) if caller is not None else ""
