"""A model that is cut, beside the same model that is not, for tests of tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from splitsec.cut import SplitModel

# A forward is annotated nowhere here: torch.fx calls it with stand-ins.


class Body(nn.Module):
    """Linear, something, linear, linear; cut after the second linear layer."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.between = nn.Identity() if between is None else between

    def middle(self, h):  # type: ignore[no-untyped-def]
        return self.between(h)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.c(torch.relu(self.b(self.middle(torch.relu(self.a(x))))))


def pair(make: Callable[[], nn.Module], cut: Any = "b", *, check: bool = True) -> tuple[nn.Module, SplitModel]:
    """Return the same model twice, the second one cut."""
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    return plain, SplitModel(make(), cut, check=check)


def results(model: nn.Module, x: torch.Tensor, first: nn.Parameter) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a model's output, and the gradient of its first layer."""
    output = model(x)
    loss = (output * torch.arange(1.0, 1 + output.numel()).view_as(output)).sum()
    return output, torch.autograd.grad(loss, first, allow_unused=True)[0]


def same(plain: nn.Module, split: SplitModel, first: str = "a.weight") -> bool:
    """Say whether both give the same output and gradient, with the same random numbers."""
    x, values = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), []
    for model, parameters in ((plain, plain), (split, split.front)):
        torch.manual_seed(2)
        values.append(results(model, x, parameters.get_parameter(first)))
    (output, gradient), (other_output, other) = values
    return torch.equal(output, other_output) and (
        gradient is other or (gradient is not None and other is not None and torch.equal(gradient, other))
    )


class Middle(Body):
    def __init__(self, middle: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.by_hand = middle

    def middle(self, h):  # type: ignore[no-untyped-def]
        return self.by_hand(self, h)


class SetsUp(torch.autograd.Function):
    """The newer way to write one, of two values."""

    @staticmethod
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x * 1 + y * 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return gradient * ctx.saved_tensors[0], None
