"""What the server receives in encrypted predictions, as an attacker would look at it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import fx

from splitsec.mpc.compiler import compile_tail, encode_weights
from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.pair import run_pair
from splitsec.mpc.run import run_program


def server_view(
    tail: fx.GraphModule, activations: torch.Tensor, *, most: int = 4096, on_step: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """What the server receives in an encrypted prediction of each activation, as numbers from -1 to 1: float32 (N, M).

    Args:
        most: numbers of each prediction, evenly chosen among them.
        on_step: called after each prediction.
    """
    program, weights = compile_tail(copy.deepcopy(tail), (1, *activations.shape[1:]), calibration=activations[:64])
    encoded = encode_weights(program, weights)

    def protocol(context: Context, query: int) -> torch.Tensor | None:
        client = context.rank == CLIENT
        result = run_program(
            program,
            context,
            activation=activations[query : query + 1] if client else None,
            weights=None if client else encoded,
        )
        if client:
            on_step()
        return result

    held = {layer: one.weight for layer, one in encoded.items()}
    found = run_pair(protocol, queries=len(activations), weights=held)
    return numbers_of(found.seen, most)


def numbers_of(seen: Sequence[torch.Tensor], most: int) -> torch.Tensor:
    """Ring elements as numbers that a network can learn from: the top bits of each."""
    words = torch.stack(list(seen))
    if words.shape[1] > most:
        words = words[:, torch.linspace(0, words.shape[1] - 1, most).long()]
    return (words.double() / 2.0**63).float()
