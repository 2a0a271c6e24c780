"""How activations and gradients travel between a client and the server while training.

`float16` and `bfloat16` round. `topk:0.1` sends the tenth of each row's values that matters most, with error feedback:

- An activation is sent as the change against what the receiver holds for the same row since the last epoch, so what is
  left out now is sent later; a row's first one travels whole, as bfloat16: J. Wang et al., "Fine-tuning language
  models over slow networks using activation compression with guarantees", NeurIPS 2022, section 3 (AQ-SGD); the same
  idea for gradients is EF21, P. Richtarik et al., NeurIPS 2021.
- Of a gradient the sender keeps what it left out and adds it to the row's next one: S. P. Karimireddy et al., "Error
  feedback fixes SignSGD and other gradient compression schemes", ICML 2019, algorithm 2.

Values kept by `topk` travel as bfloat16 with an int32 position each: 6 bytes where 4 an element were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.transport.codec import expect_tensor

ROUNDED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# What the memory of one client's rows may take at one party.
MEMORY_BYTES = 1 << 32


def check_compression(name: str) -> None:
    """Raise `ConfigError` for a name that is no compression."""
    if name != "none" and name not in ROUNDED:
        kind, _, fraction = name.partition(":")
        try:
            good = kind == "topk" and 0 < float(fraction) <= 1
        except ValueError:
            good = False
        if not good:
            raise ConfigError(
                f"unknown compression '{name}'; choose one of: none, {', '.join(ROUNDED)}, topk:F with 0 < F <= 1"
            )


def sparse(name: str) -> bool:
    """Whether a compression keeps memory of rows, so that their numbers must travel."""
    return name.startswith("topk:")


class Rows:
    """One float32 vector for each row of a client's data, zeros at first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._values: torch.Tensor | None = None

    def of(self, features: int) -> torch.Tensor:
        """All vectors, float32 (count, features), made when first asked for."""
        if self._values is None or self._values.shape[1] != features:
            if self.count * features * 4 > MEMORY_BYTES:
                raise ConfigError(
                    f"top-k remembers {self.count} rows of {features} values, more than "
                    f"{MEMORY_BYTES >> 30} GiB; use float16 or bfloat16, or a later cut"
                )
            self._values = torch.zeros(self.count, features)
        return self._values

    def check(self, rows: torch.Tensor) -> torch.Tensor:
        """Row numbers that came over the wire as int64; raises `MessageError` for impossible ones."""
        expect_tensor(rows, what="the row numbers", dtype=torch.int32, shape=(None,))
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.count:
            raise MessageError(f"row numbers beyond the client's {self.count} samples")
        return rows.long()


class ActivationCoder:
    """Activations of one client, at either end; both ends must see the same ones in the same order.

    Args:
        name: the compression.
        samples: how many rows the client has.
    """

    def __init__(self, name: str, samples: int) -> None:
        self._name = name
        self._held = Rows(samples)
        self._seen = torch.zeros(samples, dtype=torch.bool)

    def pack(self, activation: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        """What travels for a float32 activation of these rows (int64 numbers)."""
        if not sparse(self._name):
            return [activation.to(ROUNDED.get(self._name, torch.float32))]
        flat = activation.flatten(1)
        held = self._held.of(flat.shape[1])
        if not self._seen[rows].all():
            self._seen[rows] = True
            whole = activation.to(torch.bfloat16)
            held[rows] = whole.flatten(1).float()
            return [whole, rows.to(torch.int32)]
        values, places = _largest(flat - held[rows], self._name)
        held[rows] += _spread(values, places, flat.shape[1])
        return [values, places, rows.to(torch.int32)]

    def unpack(self, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """The activation, float32; raises `MessageError` for tensors that do not fit."""
        if not sparse(self._name):
            return _whole(tensors, self._name)
        if len(tensors) not in (2, 3):
            raise MessageError(f"a sparse activation has two or three tensors, not {len(tensors)}")
        features = math.prod(shape)
        rows = self._held.check(tensors[-1])
        held = self._held.of(features)
        if len(tensors) == 2:
            whole = expect_tensor(
                tensors[0], what="the activation", dtype=torch.bfloat16, shape=(len(rows), *shape)
            ).float()
            held[rows] = whole.view(len(rows), features)
            return whole
        held[rows] += _spread(*_checked(tensors, len(rows), features), features)
        return held[rows].view(len(rows), *shape)


class GradientCoder:
    """Gradients to one client, at either end; only the sender remembers.

    Args:
        samples: how many rows the client has.
    """

    def __init__(self, name: str, samples: int) -> None:
        self._name = name
        self._left = Rows(samples)

    def pack(self, gradient: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        """What travels for a float32 gradient by the activation of these rows (int64 numbers)."""
        if not sparse(self._name):
            return [gradient.to(ROUNDED.get(self._name, torch.float32))]
        flat = gradient.flatten(1)
        left = self._left.of(flat.shape[1])
        wanted = flat + left[rows]
        values, places = _largest(wanted, self._name)
        left[rows] = wanted - _spread(values, places, flat.shape[1])
        return [values, places]

    def unpack(self, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """The gradient, float32 of `shape`; raises `MessageError` for tensors that do not fit."""
        if not sparse(self._name):
            whole = _whole(tensors, self._name)
            return expect_tensor(whole, what="the gradient", dtype=torch.float32, shape=shape)
        if len(tensors) != 2:
            raise MessageError(f"a sparse gradient has two tensors, not {len(tensors)}")
        features = math.prod(shape[1:])
        return _spread(*_checked(tensors, shape[0], features), features).view(tuple(shape))


def _whole(tensors: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    if len(tensors) != 1:
        raise MessageError(f"one tensor was due, not {len(tensors)}")
    wanted = ROUNDED.get(name, torch.float32)
    expect_tensor(tensors[0], what="the activation", dtype=wanted, shape=[None] * tensors[0].dim())
    return tensors[0].float()


def _largest(flat: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    kept = math.ceil(float(name.partition(":")[2]) * flat.shape[1])
    places = flat.abs().topk(kept, dim=1, sorted=False).indices
    return flat.gather(1, places).to(torch.bfloat16), places.to(torch.int32)


def _spread(values: torch.Tensor, places: torch.Tensor, features: int) -> torch.Tensor:
    return torch.zeros(len(values), features).scatter_(1, places.long(), values.float())


def _checked(tensors: Sequence[torch.Tensor], rows: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = expect_tensor(tensors[0], what="the values", dtype=torch.bfloat16, shape=(rows, None))
    places = expect_tensor(tensors[1], what="the positions", dtype=torch.int32, shape=tuple(values.shape))
    if values.shape[1] > features:
        raise MessageError(f"{values.shape[1]} values a row, but a row has {features}")
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < features:
        raise MessageError(f"positions beyond a row's {features} values")
    return values, places
