"""Putting back what running a model's code changes in the model, and in the generators of random numbers."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_TABLES = (dict, OrderedDict, list, set)


@contextmanager
def as_it_was(model: nn.Module, *, values: bool = False) -> Iterator[None]:
    """Put back at the end of the block all attributes of all modules (buffers, hooks, modes), and random generators.

    Args:
        values: put back the values of buffers and of tensors that are attributes too, which in-place operations change;
            costs a copy of them.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    tables = [(table, table.copy()) for _, own in attributes for table in own.values() if type(table) in _TABLES]
    tensors = [(tensor, tensor.detach().clone()) for _, tensor in state_tensors(model)] if values else []
    generators = Generators()
    try:
        yield
    finally:
        for module, own in attributes:
            vars(module).clear()
            vars(module).update(own)
        for table, content in tables:
            _refill(table, content)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)
        generators.restore()


def _refill(table: Any, content: Any) -> None:
    # The same object, since handles of hooks and others refer to it.
    table.clear()
    if isinstance(table, list):
        table.extend(content)
    else:
        table.update(content)


def state_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield buffers, and other tensors that modules have as attributes, with their paths; no parameters."""
    yield from model.named_buffers()
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name}" if path else name, value


class Generators:
    """The states of Python's, numpy's and torch's generators of random numbers."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Set the generators to these states."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def foreign_drew(self) -> str:
        """Name the generator not of torch that has been used since: `"random"`, `"numpy.random"`, or empty."""
        if random.getstate() != self._python:
            return "random"
        if self._numpy is not None:
            before, now = self._numpy, sys.modules["numpy"].random.get_state()
            if before[2] != now[2] or (before[1] != now[1]).any():
                return "numpy.random"
        return ""
