"""The inverse square root, of which roots, reciprocals, quotients and lengths are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from splitsec.mpc.program.operations.base import OPERATIONS, Operation, Running, Size, takes_product
from splitsec.mpc.program.program import Step, Weights
from splitsec.mpc.protocols.normalise import FINE_BITS, inverse_root, squares_bits
from splitsec.mpc.protocols.truncate import truncate

# Of values below `low`, Newton's two steps from the first stair make at most this times what `low` has.
_BELOW = 2.25


def _inverse_root(running: Running) -> torch.Tensor:
    step, x = running.step, running.first
    most = 2.0**step.bits
    fine = squares_bits(most)
    share = x.share << (fine - x.scale) if fine >= x.scale else truncate(running.context, x.share, x.scale - fine)
    return inverse_root(running.context, share, scale=fine, least=step.low, most=most)


def _plain(step: Step, inputs: Sequence[torch.Tensor], _weights: Weights | None) -> torch.Tensor:
    return inputs[0].clamp(min=step.low).rsqrt()


def _bound(step: Step, bounds: Sequence[float], _size: Size | None) -> float:
    # `inverse_root` takes what is below 2**28.
    return _BELOW / step.low**0.5 if bounds[0] < 2.0**27 else float("inf")


OPERATIONS.register_all(
    {
        # 1 / sqrt(x) for x from `low` on.
        "inverse_root": Operation(
            run=_inverse_root,
            plain=_plain,
            takes=takes_product,
            gives=lambda _step, _scales, _precision: FINE_BITS,
            bound=_bound,
            grows=True,
            compares=True,
        )
    }
)
