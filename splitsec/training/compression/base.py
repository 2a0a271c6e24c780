"""What a compression is, and the registry of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from splitsec.errors import MessageError
from splitsec.registry import Registry


class Coder(ABC):
    """One client's activations, or its gradients, at either end; both ends see the same ones in the same order."""

    @abstractmethod
    def pack(self, values: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return what travels.

        Args:
            values: float32 (rows, ...).
            rows: int64 (rows,), the numbers of these rows among the client's.

        Returns:
            One to four tensors with an entry for every row, of dtypes that may travel (`training.messages.CODED`).
        """

    @abstractmethod
    def unpack(self, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """Return the values, float32.

        Args:
            tensors: what `pack` made at the other end.
            shape: of the values, rows first.

        Raises:
            MessageError: the tensors do not fit.
        """

    def rows_of(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return the row numbers (int64) that travel with an activation; None where none do."""
        return None


# Takes what stands behind the name's colon, and the number of the client's rows.
MakeCoder: TypeAlias = Callable[[str, int], Coder]


@dataclass(frozen=True)
class Compression:
    """A compression: how activations travel to the server, and gradients back."""

    activations: MakeCoder
    gradients: MakeCoder


COMPRESSIONS: Registry[Compression] = Registry("compression", package="splitsec.training.compression")


def coders(text: str, samples: int) -> tuple[Coder, Coder]:
    """Return the coders of activations and gradients of a client with `samples` rows, as `settings.compression` says.

    Raises:
        ConfigError: there is no compression of this name here.
    """
    name, _, argument = text.partition(":")
    compression = COMPRESSIONS.get(name)
    return compression.activations(argument, samples), compression.gradients(argument, samples)


def check_dtypes(tensors: Sequence[torch.Tensor], *expected: torch.dtype) -> None:
    """Raise `MessageError` for tensors of which the run's compression makes none."""
    dtypes = tuple(tensor.dtype for tensor in tensors)
    if dtypes != expected:
        raise MessageError(
            f"an activation or gradient as {', '.join(map(str, dtypes))}, expected {', '.join(map(str, expected))}"
        )
