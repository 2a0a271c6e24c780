"""A whole tail, compiled and run encrypted by both parties in the test."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from two_party import Recorder, run_both

from splitsec.cut import trace
from splitsec.mpc.compiler import compile_tail, encode_weights
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.program import Program
from splitsec.mpc.run import run_program


def run_tail(
    tail: nn.Module, x: torch.Tensor, *, program_of: Program | None = None, **options: Any
) -> tuple[torch.Tensor, list[Recorder], Program]:
    """The client's result, both sessions and the program.

    `options` are those of `compile_tail`; `program_of` takes the place of the program that it makes.
    """
    program, weights = compile_tail(trace(tail), tuple(x.shape), **options)
    program = program_of or program
    encoded = encode_weights(program, weights)

    def protocol(context: Context) -> torch.Tensor | None:
        client = context.rank == CLIENT
        return run_program(program, context, activation=x if client else None, weights=None if client else encoded)

    held = {layer: one.weight for layer, one in encoded.items()}
    (server, opened), sessions = run_both(protocol, weights=held, comparison=program.comparison)
    assert server is None
    return opened, sessions, program
