"""Linear and convolution layers whose weights the server knows: masked once a session, never opened again.

The server's weights W travel once as F = W - B, with B from the seed that the server shares with the dealer. For an
input x, the client has a random a and the dealer gives the server c0 = B(a) - c1. The client sends its share of x
minus a; then W(x0 + x1 - a) + c0 at the server and F(a) + c1 at the client are shares of W(x). The client's part
depends on nothing that comes online, so it is computed offline.

Fixed-operand Beaver triples: P. Mohassel and Y. Zhang, "SecureML", IEEE S&P 2017, section 4.1; all of the client's work
offline: P. Mishra et al., "Delphi", USENIX Security 2020, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from splitsec.mpc.context import SERVER, Context
from splitsec.mpc.correlation import Correlation, Masks, Shape, correlation
from splitsec.mpc.prg import Stream


@correlation
class LinearMask(Correlation, frozen=True):
    """One use of a layer: `input` is the shape of x, `weight` that of W, as torch's functions take them.

    `scale` multiplies element by element, with weights that broadcast to the shape of x.
    """

    layer: int
    op: Literal["linear", "conv2d", "scale"]
    input: Shape
    weight: Shape
    stride: Shape = (1, 1)
    padding: Shape = (0, 0)
    dilation: Shape = (1, 1)
    groups: int = 1

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return W(x) in the ring, int64."""
        if self.op == "linear":
            return torch.matmul(x, weight.t())
        if self.op == "scale":
            return x * weight
        return torch.conv2d(
            x, weight, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups
        )

    @property
    def output(self) -> Shape:
        """Return the shape of W(x)."""
        if self.op == "linear":
            return (*self.input[:-1], self.weight[0])
        if self.op == "scale":
            return self.input
        sizes = [
            (self.input[2 + i] + 2 * self.padding[i] - self.dilation[i] * (self.weight[2 + i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        ]
        return (self.input[0], self.weight[0], *sizes)

    def weight_shape(self) -> tuple[int, Shape] | None:
        return self.layer, self.weight

    def correction_shapes(self) -> list[Shape]:
        return [self.output]

    def part_shapes(self, rank: int) -> list[Shape]:
        return [self.output] if rank == SERVER else [self.input, self.output]

    def check(self) -> None:
        if any(len(option) != 2 for option in (self.stride, self.padding, self.dilation)):
            raise ValueError("stride, padding and dilation are pairs")
        if self.groups < 1 or any(size < 1 for size in (*self.stride, *self.dilation, *self.weight)):
            raise ValueError("stride, dilation, groups and weights begin at 1")
        # By arithmetic: plans come from others, and to try each layer on tensors without data takes too long.
        if not self._fits() or any(size < 1 for size in self.output):
            raise ValueError(f"a {self.op} layer that does not take {self.input}")

    def _fits(self) -> bool:
        """Return whether the layer takes an input of this shape."""
        shape, weight = self.input, self.weight
        if self.op == "linear":
            return len(weight) == 2 and len(shape) >= 1 and shape[-1] == weight[1]
        if self.op == "scale":
            pairs = zip(reversed(shape), reversed(weight), strict=False)
            return len(weight) <= len(shape) and all(factors in (1, size) for size, factors in pairs)
        if len(shape) != 4 or len(weight) != 4:
            return False
        return shape[1] == weight[1] * self.groups and weight[0] % self.groups == 0

    def deal(self, server: Stream, client: Stream, masks: Masks) -> list[torch.Tensor]:
        a, c1 = client.ring(self.input), client.ring(self.output)
        return [self.apply(a, masks[self.layer]) - c1]

    def expand(
        self, rank: int, stream: Stream, corrections: Sequence[torch.Tensor], masks: Masks
    ) -> list[torch.Tensor]:
        """Return [c0] at the server, and [a, F(a) + c1] at the client, where F(a) + c1 is its share of W(x)."""
        if rank == SERVER:
            return list(corrections)
        a, c1 = stream.ring(self.input), stream.ring(self.output)
        return [a, c1.add_(self.apply(a, masks[self.layer]))]


def laid_out(weight: torch.Tensor) -> torch.Tensor:
    """Return the same weights in the order of memory that products read fastest: a linear layer's by columns."""
    return weight.t().contiguous().t() if weight.dim() == 2 else weight.contiguous()


def linear(
    context: Context, share: torch.Tensor, item: LinearMask, *, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return shares of W(x) + bias: int64 of `item.output`. One message of |x| elements from the client to the server.

    Args:
        share: int64 of `item.input`; at the server, or at the client, all zeros if the other has x in clear.
        weight, bias: at the server, ring elements; `bias` broadcasts and carries the scale of the product.
    """
    if context.rank != SERVER:
        a, result = context.take(item)
        context.collect(share - a, SERVER)
        return result
    (correction,) = context.take(item)
    rest = context.collect(share, SERVER)
    if context.planning or rest is None or weight is None:
        return torch.zeros(item.output, dtype=torch.int64)
    product = item.apply(share + rest, weight).add_(correction)
    return product if bias is None else product.add_(bias)
