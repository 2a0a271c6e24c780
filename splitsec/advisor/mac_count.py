"""The multiply-adds of a plain run, counted alike however torch fuses layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def _product(first: torch.Size, *_: Any, **_options: Any) -> int:
    """Return twice the multiply-adds of a tensor by a vector."""
    return 2 * math.prod(first)


def _sum_of_products(_total: torch.Size, first: torch.Size, second: torch.Size, *_: Any, **_options: Any) -> int:
    """Return twice the multiply-adds of a matrix or a batch of them, (..., n, k), by (..., k, m) or (k,)."""
    return 2 * math.prod(first) * (second[-1] if len(second) > 1 else 1)


def _bilinear(_first: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **_options: Any) -> int:
    """Return twice the multiply-adds of a bilinear layer with a weight (out, in, in)."""
    return 2 * math.prod(out_shape[:1]) * math.prod(weight[-3:])


# Operators that torch's counter has no formula for. Their names are torch's own: a release may lack them.
_FORMULAS: dict[str, Callable[..., int]] = {
    "mv": _product,
    "dot": _product,
    "addmv": _sum_of_products,
    "addbmm": _sum_of_products,
    "_trilinear": _bilinear,
}


class MacCounter:
    """A count of the multiply-adds of all products of matrices and convolutions since it began."""

    def __init__(self, flops: FlopCounterMode) -> None:
        self._flops = flops

    def total(self) -> int:
        """Return the multiply-adds so far."""
        # Torch counts a multiplication and an addition as two.
        return int(self._flops.get_total_flops()) // 2


@contextmanager
def counting_macs() -> Iterator[MacCounter]:
    """Count the multiply-adds of what runs in the block.

    Fused forms of attention and of recurrent layers would hide their products from the counter, differently in each
    release of torch, so all run step by step in the block; torch's switches for that are its process's own.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    aten = torch.ops.aten
    formulas = {getattr(aten, name): formula for name, formula in _FORMULAS.items() if hasattr(aten, name)}
    with ExitStack() as stack:
        flops = stack.enter_context(FlopCounterMode(display=False, custom_mapping=formulas))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        with warnings.catch_warnings():
            # Some releases say of this switch that it does more on other hardware.
            warnings.simplefilter("ignore")
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        yield MacCounter(flops)
