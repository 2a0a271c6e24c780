"""Operations that move elements about: local, exact, and the same on shares as in plain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from splitsec.mpc.program.operations.base import OPERATIONS, Operation, Running, takes_product
from splitsec.mpc.program.program import Step


def _moving(move: Callable[[Step, torch.Tensor], torch.Tensor]) -> Operation:
    def run(running: Running) -> torch.Tensor:
        return move(running.step, running.first.share)

    return Operation(run=run, plain=lambda step, inputs, _weights: move(step, inputs[0]))


def _index(step: Step, x: torch.Tensor) -> torch.Tensor:
    # Start, stop and step of each dimension; whole numbers in the index have become slices of one.
    parts = tuple(slice(*step.index[at : at + 3]) for at in range(0, len(step.index), 3))
    return x[parts].reshape(step.shape)


def _gather(step: Step, x: torch.Tensor) -> torch.Tensor:
    return x.index_select(step.dim, torch.tensor(step.index))


def _pad(step: Step, x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, step.padding)


def _expand(step: Step, x: torch.Tensor) -> torch.Tensor:
    return x.expand(step.shape)


def _cat(running: Running) -> torch.Tensor:
    # A party's shares at the larger of the scales: a shift to the left is exact.
    return torch.cat([x.share << (running.scale - x.scale) for x in running.inputs], running.step.dim)


OPERATIONS.register_all(
    {
        "reshape": _moving(lambda step, x: x.reshape(step.shape)),
        "permute": _moving(lambda step, x: x.permute(step.index)),
        "index": _moving(_index),
        "gather": _moving(_gather),
        "pad": _moving(_pad),
        "expand": _moving(_expand),
        "cat": Operation(
            run=_cat,
            plain=lambda step, inputs, _weights: torch.cat(list(inputs), step.dim),
            takes=takes_product,
        ),
    }
)
