"""Models for columns: clients hold different columns of the same people, and the server joins their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from splitsec.errors import ConfigError

Join: TypeAlias = Literal["concat", "sum"]
# The cut of a vertical model, between its fronts and its tail.
CUT = "join"


class VerticalModel(nn.Module):
    """A front for each client's columns, and a tail for their outputs joined.

    Args:
        fronts: by the client's name, in the order in which their outputs are joined; each gives (N, features).
        tail: takes the joined outputs and returns one row of logits a person.
        join: `concat` puts the features side by side, `sum` adds them.

    Example:
        >>> model = VerticalModel({"bank": nn.Linear(13, 8), "partner": nn.Linear(10, 8)}, nn.Linear(16, 2))
        >>> model(torch.zeros(5, 13), torch.zeros(5, 10)).shape
        torch.Size([5, 2])
    """

    def __init__(self, fronts: Mapping[str, nn.Module], tail: nn.Module, *, join: Join = "concat") -> None:
        super().__init__()
        if len(fronts) < 2:
            raise ConfigError("a vertical model needs the fronts of at least two clients")
        self.fronts = nn.ModuleDict(dict(fronts))
        self.tail = tail
        self.join: Join = join

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes) of the clients' columns (N, columns), in the order of the fronts."""
        outputs = [front(values) for front, values in zip(self.fronts.values(), columns, strict=True)]
        result: torch.Tensor = self.tail(joined(outputs, self.join))
        return result


def joined(outputs: Sequence[torch.Tensor], join: Join) -> torch.Tensor:
    """Return the clients' outputs (N, features), real or shares, as the tail takes them."""
    return torch.cat(list(outputs), dim=1) if join == "concat" else torch.stack(list(outputs)).sum(0)
