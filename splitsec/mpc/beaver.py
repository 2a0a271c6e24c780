"""Correlations for products of two secrets, and for converting bits: what CrypTen's own functions take.

D. Beaver, "Efficient multiparty protocols using circuit randomization", CRYPTO 1991.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from splitsec.mpc.correlation import Correlation, Masks, Shape, correlation
from splitsec.mpc.prg import Stream


class Products(Correlation, frozen=True):
    """Shares of random inputs, and of outputs that are a function of those inputs."""

    def _inputs(self) -> list[Shape]:
        raise NotImplementedError

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        raise NotImplementedError

    def _draw(self, stream: Stream, shape: Shape) -> torch.Tensor:
        return stream.ring(shape)

    def _join(self, share: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return share + other

    def _part(self, whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return whole - other

    def part_shapes(self, rank: int) -> list[Shape]:
        return [*self._inputs(), *self.correction_shapes()]

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        whole = [self._join(self._draw(server, shape), self._draw(client, shape)) for shape in self._inputs()]
        return [self._part(out, client.ring(out.shape)) for out in self._outputs(*whole)]

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        inputs = [self._draw(stream, shape) for shape in self._inputs()]
        if rank == 0:
            return [*inputs, *corrections]
        return [*inputs, *(stream.ring(shape) for shape in self.correction_shapes())]


@correlation
class Triple(Products, frozen=True):
    """a, b and op(a, b) for the product of two shared tensors (Beaver 1991); ops are torch's own."""

    op: Literal["mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"]
    left: Shape
    right: Shape
    stride: Shape = (1,)
    padding: Shape = (0,)
    dilation: Shape = (1,)
    groups: int = 1

    def _inputs(self) -> list[Shape]:
        return [self.left, self.right]

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self._apply(*inputs)]

    def correction_shapes(self) -> list[Shape]:
        """Compute the shape by arithmetic: plans come from others, and to try products takes too long."""
        left, right = self.left, self.right
        if self.op == "mul":
            return [np.broadcast_shapes(left, right)]
        if self.op == "matmul":
            return [_matmul_shape(left, right)]
        dims = len(left) - 2
        if len(right) != len(left) or dims != len(self.stride):
            raise ValueError(f"{self.op} does not take {left} and {right}")
        transposed = self.op.startswith("conv_transpose")
        channels_in, channels_out = right[1] * self.groups, right[0]
        if transposed:
            channels_in, channels_out = right[0], right[1] * self.groups
        if left[1] != channels_in or right[0] % self.groups:
            raise ValueError(f"{self.op} does not take {left} and {right}")
        reach = [self.dilation[i] * (right[2 + i] - 1) for i in range(dims)]
        if transposed:
            sizes = [(left[2 + i] - 1) * self.stride[i] - 2 * self.padding[i] + reach[i] + 1 for i in range(dims)]
        else:
            sizes = [(left[2 + i] + 2 * self.padding[i] - reach[i] - 1) // self.stride[i] + 1 for i in range(dims)]
        if any(size < 1 for size in (*sizes, *right)):
            raise ValueError(f"{self.op} does not take {left} and {right}")
        return [(left[0], channels_out, *sizes)]

    def check(self) -> None:
        dims = 2 if self.op.endswith("2d") else 1
        options = (self.stride, self.dilation, self.padding)
        if self.groups < 1 or any(size < 1 for size in (*self.stride, *self.dilation)):
            raise ValueError("stride, dilation and groups begin at 1")
        if self.op.startswith("conv") and any(len(option) != dims for option in options):
            raise ValueError(f"{self.op} takes {dims} numbers for stride, padding and dilation")

    def _apply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if self.op in ("mul", "matmul"):
            return getattr(torch, self.op)(left, right)  # type: ignore[no-any-return]
        return getattr(torch, self.op)(  # type: ignore[no-any-return]
            left,
            right,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


def _matmul_shape(left: Shape, right: Shape) -> Shape:
    """Return the shape of `torch.matmul` of tensors of these shapes."""
    if not left or not right or left[-1] != right[-2 if len(right) > 1 else 0]:
        raise ValueError(f"matmul does not take {left} and {right}")
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else ()
    return (*np.broadcast_shapes(left[:-2], right[:-2]), *rows, *columns)


@correlation
class SquarePair(Products, frozen=True):
    """r and r*r."""

    shape: Shape

    def _inputs(self) -> list[Shape]:
        return [self.shape]

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [inputs[0] * inputs[0]]

    def correction_shapes(self) -> list[Shape]:
        return [self.shape]


@correlation
class BinaryTriple(Products, frozen=True):
    """a, b and a & b in XOR sharing, 64 bits an element."""

    left: Shape
    right: Shape

    def _inputs(self) -> list[Shape]:
        return [self.left, self.right]

    def _join(self, share: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return share ^ other

    def _part(self, whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return whole ^ other

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [inputs[0] & inputs[1]]

    def correction_shapes(self) -> list[Shape]:
        return [np.broadcast_shapes(self.left, self.right)]


@correlation
class RandomBit(Products, frozen=True):
    """A bit in XOR sharing and the same bit in additive sharing."""

    shape: Shape

    def _inputs(self) -> list[Shape]:
        return [self.shape]

    def _draw(self, stream: Stream, shape: Shape) -> torch.Tensor:
        return stream.bits(shape)

    def _join(self, share: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return share ^ other

    def _outputs(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [inputs[0]]

    def correction_shapes(self) -> list[Shape]:
        return [self.shape]
