"""A whole tail, compiled and run encrypted by both parties in the test."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from splitsec.cut import trace
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.program.bounds import Memory
from splitsec.mpc.program.compile import CompileOptions, compile_tail, encode_weights
from splitsec.mpc.program.execute import run_program
from splitsec.mpc.program.program import Program, Shape, Weights
from support.two_party import Recorder, run_both


def compiled(
    tail: fx.GraphModule,
    input_shape: Shape,
    *,
    calibration: torch.Tensor | None = None,
    memory: Memory | None = None,
    **options: Any,
) -> tuple[Program, dict[int, Weights]]:
    """Compile a tail with these `CompileOptions`."""
    return compile_tail(tail, input_shape, CompileOptions(**options), calibration=calibration, memory=memory)


def run_tail(
    tail: nn.Module, x: torch.Tensor, *, program_of: Program | None = None, **options: Any
) -> tuple[torch.Tensor, list[Recorder], Program]:
    """Compile a tail and run it encrypted; return the client's result, both parties' sessions and the program.

    Args:
        program_of: another program than the tail's own.
        options: those of `compiled`.
    """
    program, weights = compiled(trace(tail), tuple(x.shape), **options)
    program = program_of or program
    encoded = encode_weights(program, weights)

    def protocol(context: Context) -> torch.Tensor | None:
        client = context.rank == CLIENT
        return run_program(program, context, activation=x if client else None, weights=None if client else encoded)

    held = {layer: one.weight for layer, one in encoded.items()}
    (server, opened), sessions = run_both(protocol, weights=held, comparison=program.comparison)
    assert server is None
    return opened, sessions, program
