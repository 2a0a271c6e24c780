"""A party's own state of torch's generator, so that dropout and the like do not depend on who shares the process."""

from __future__ import annotations

import hashlib
from types import TracebackType

import torch


def derived_seed(purpose: str, seed: int) -> int:
    """A seed of its own for each purpose, 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:4], "big")


class OwnRandomness:
    """Within the `with` block torch's CPU generator is this party's; outside it is as it was.

    For training alone (dropout, the order of batches): masks come from `mpc.prg`.

    Attributes:
        state: of the generator, uint8, as `torch.get_rng_state` gives it.
    """

    def __init__(self, seed: int | None) -> None:
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        self.state = generator.get_state()
        self._outside: list[torch.Tensor] = []

    def __enter__(self) -> OwnRandomness:
        self._outside.append(torch.get_rng_state())
        torch.set_rng_state(self.state)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.state = torch.get_rng_state()
        torch.set_rng_state(self._outside.pop())
