"""Encrypted predictions: the inverse network again, on everything that the server receives in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from splitsec.mpc.context import CLIENT, Context
from splitsec.mpc.in_process import run_pair
from splitsec.mpc.program.compile import compile_tail, encode_weights
from splitsec.mpc.program.execute import run_program
from splitsec.privacy.audit.base import ATTACKS, Attack, Finding, Progress, Steps, Target, compare_images
from splitsec.privacy.audit.inverse_network import invert
from splitsec.privacy.audit.page import Strip

# Predictions of the attacker's own images, and steps of the network that learns from them.
ROWS = Steps(quick=200, thorough=400)
STEPS = Steps(quick=300, thorough=600)
MOST_VICTIMS = 128
PREDICTIONS, INVERSION = "encrypted predictions", "inverse network on encrypted predictions"


def server_view(
    tail: fx.GraphModule, activations: torch.Tensor, *, most: int = 4096, on_step: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Return what the server receives in an encrypted prediction of each activation: float32 (N, M), from -1 to 1.

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
        if client and not context.planning:
            on_step()
        return result

    plain_weights = {layer: weight.weight for layer, weight in encoded.items()}
    outcome = run_pair(protocol, queries=len(activations), weights=plain_weights)
    return numbers_of(outcome.seen, most)


def numbers_of(seen: Sequence[torch.Tensor], most: int) -> torch.Tensor:
    """Return ring elements as numbers that a network can learn from: the top bits of each."""
    words = torch.stack(list(seen))
    if words.shape[1] > most:
        words = words[:, torch.linspace(0, words.shape[1] - 1, most).long()]
    return (words.double() / 2.0**63).float()


class EncryptedPredictions(Attack):
    """Trains an inverse network on the server's view of predictions whose images the attacker knows."""

    scope = "prediction"
    position = 60

    def needs(self, target: Target) -> str:
        return "" if target.split.head is None else "one cut: leave --head out"

    def stages(self, target: Target) -> Mapping[str, int]:
        known, victims = self._counts(target)
        return {PREDICTIONS: known + victims, INVERSION: STEPS.at(target.effort)}

    def _counts(self, target: Target) -> tuple[int, int]:
        """Return how many images the attacker knows, and how many it attacks."""
        return min(ROWS.at(target.effort), len(target.rows.public)), min(MOST_VICTIMS, len(target.victims))

    def run(self, target: Target, progress: Progress) -> Finding:
        known, count = self._counts(target)
        public, victims = target.rows.public[:known], target.victims[:count]
        progress.begin(PREDICTIONS)
        seen = server_view(target.split.tail, target.sent(torch.cat([public, victims])), on_step=progress.step)
        progress.begin(INVERSION)
        reconstruct = invert(
            seen[:known], public, steps=STEPS.at(target.effort), seed=target.seed, on_step=progress.step
        )
        finding = compare_images(
            "inverse network on all that was received", victims, reconstruct(seen[known:]), target.guess[:count]
        )
        return replace(
            finding,
            strips=tuple(Strip("inverse network", strip.images) for strip in finding.strips),
            note=f"The server received {seen.shape[1]} numbers a prediction, sums with its own messages included; the "
            f"attacker had those of {known} images that it knows.",
        )

    def try_out(self, target: Target, progress: Progress) -> None:
        public = target.rows.public
        progress.begin(PREDICTIONS)
        seen = server_view(target.split.tail, target.sent(public[: ROWS.trial]), on_step=progress.step)
        progress.begin(INVERSION)
        # As large as a batch, whose time is that of a step.
        seen = seen.repeat(16, 1)
        invert(seen, public[: len(seen)], steps=STEPS.trial, seed=target.seed, on_step=progress.step)


ATTACKS.register("encrypted")(EncryptedPredictions())
