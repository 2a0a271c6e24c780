"""Top-k: `topk:0.1` sends the tenth of each row's values that matters most, with error feedback.

- An activation is sent as the change against what the receiver holds for the same row since the last epoch, so what is
  left out now is sent later; a row's first one travels whole, as bfloat16: J. Wang et al., "Fine-tuning language
  models over slow networks using activation compression with guarantees", NeurIPS 2022, section 3 (AQ-SGD); the same
  idea for gradients is EF21, P. Richtarik et al., NeurIPS 2021.
- Of a gradient the sender keeps what it left out and adds it to the row's next one: S. P. Karimireddy et al., "Error
  feedback fixes SignSGD and other gradient compression schemes", ICML 2019, algorithm 2.

The values that are sent travel as bfloat16 with an int32 position each: 6 bytes where 4 an element were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.training.compression.base import COMPRESSIONS, Coder, Compression, check_dtypes
from splitsec.transport.codec import expect_shape

# What the memory of one client's rows may take at one party.
MEMORY_BYTES = 1 << 32


class Rows:
    """One float32 vector for each row of a client's data, zeros at first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._values: torch.Tensor | None = None

    def of(self, features: int) -> torch.Tensor:
        """Return all vectors, float32 (count, features), made when first asked for."""
        if self._values is None or self._values.shape[1] != features:
            if self.count * features * 4 > MEMORY_BYTES:
                raise ConfigError(
                    f"top-k remembers {self.count} rows of {features} values, more than "
                    f"{MEMORY_BYTES >> 30} GiB; use float16 or bfloat16, or a later cut"
                )
            self._values = torch.zeros(self.count, features)
        return self._values

    def check(self, rows: torch.Tensor) -> torch.Tensor:
        """Return row numbers that came over the wire as int64; raises `MessageError` for impossible ones."""
        expect_shape(rows, (None,), what="the row numbers")
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.count:
            raise MessageError(f"row numbers beyond the client's {self.count} samples")
        return rows.long()


class SparseActivations(Coder):
    """Changes of activations; both ends remember the last activation of every row.

    Args:
        fraction: of a row's values that travels.
        samples: how many rows the client has.
    """

    def __init__(self, fraction: float, samples: int) -> None:
        self._fraction = fraction
        self._memory = Rows(samples)
        self._seen = torch.zeros(samples, dtype=torch.bool)

    def pack(self, values: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        flat = values.flatten(1)
        memory = self._memory.of(flat.shape[1])
        if not self._seen[rows].all():
            self._seen[rows] = True
            whole = values.to(torch.bfloat16)
            memory[rows] = whole.flatten(1).float()
            return [whole, rows.to(torch.int32)]
        changes, places = _largest(flat - memory[rows], self._fraction)
        memory[rows] += _spread(changes, places, flat.shape[1])
        return [changes, places, rows.to(torch.int32)]

    def unpack(self, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        whole = len(tensors) == 2
        check_dtypes(tensors, torch.bfloat16, *[torch.int32] * (1 if whole else 2))
        features = math.prod(shape[1:])
        rows = self._memory.check(tensors[-1])
        memory = self._memory.of(features)
        if whole:
            activation = expect_shape(tensors[0], shape, what="the activation").float()
            memory[rows] = activation.view(len(rows), features)
            return activation
        memory[rows] += _spread(*_checked(tensors, len(rows), features), features)
        return memory[rows].view(tuple(shape))

    def rows_of(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return tensors[-1].long()


class SparseGradients(Coder):
    """Gradients; only the sender remembers what it left out.

    Args:
        fraction: of a row's values that travels.
        samples: how many rows the client has.
    """

    def __init__(self, fraction: float, samples: int) -> None:
        self._fraction = fraction
        self._left = Rows(samples)

    def pack(self, values: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        flat = values.flatten(1)
        left = self._left.of(flat.shape[1])
        due = flat + left[rows]
        largest, places = _largest(due, self._fraction)
        left[rows] = due - _spread(largest, places, flat.shape[1])
        return [largest, places]

    def unpack(self, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        check_dtypes(tensors, torch.bfloat16, torch.int32)
        features = math.prod(shape[1:])
        return _spread(*_checked(tensors, shape[0], features), features).view(tuple(shape))


def _largest(flat: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    count = math.ceil(fraction * flat.shape[1])
    places = flat.abs().topk(count, dim=1, sorted=False).indices
    return flat.gather(1, places).to(torch.bfloat16), places.to(torch.int32)


def _spread(values: torch.Tensor, places: torch.Tensor, features: int) -> torch.Tensor:
    return torch.zeros(len(values), features).scatter_(1, places.long(), values.float())


def _checked(tensors: Sequence[torch.Tensor], rows: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = expect_shape(tensors[0], (rows, None), what="the values")
    places = expect_shape(tensors[1], values.shape, what="the positions")
    if values.shape[1] > features:
        raise MessageError(f"{values.shape[1]} values a row, but a row has {features}")
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < features:
        raise MessageError(f"positions beyond a row's {features} values")
    return values, places


COMPRESSIONS.register("topk")(
    Compression(
        activations=lambda argument, samples: SparseActivations(float(argument), samples),
        gradients=lambda argument, samples: SparseGradients(float(argument), samples),
    )
)
