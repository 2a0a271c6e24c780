"""Rounding: values travel as they are (float32), or as float16 or bfloat16 with half the bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from splitsec.training.compression.base import COMPRESSIONS, Coder, Compression, check_dtypes
from splitsec.transport.codec import expect_shape


class Rounded(Coder):
    """Values of a dtype; nothing is remembered."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def pack(self, values: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        return [values.to(self._dtype)]

    def unpack(self, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        check_dtypes(tensors, self._dtype)
        return expect_shape(tensors[0].float(), shape, what="an activation or gradient")


def _rounding(dtype: torch.dtype) -> Compression:
    return Compression(lambda _argument, _samples: Rounded(dtype), lambda _argument, _samples: Rounded(dtype))


COMPRESSIONS.register("none")(_rounding(torch.float32))
COMPRESSIONS.register("float16")(_rounding(torch.float16))
COMPRESSIONS.register("bfloat16")(_rounding(torch.bfloat16))
