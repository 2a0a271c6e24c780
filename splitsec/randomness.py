"""A party's own randomness in training: the order of its rows, and its state of torch's generator for dropout."""

from __future__ import annotations

import hashlib
from types import TracebackType

import torch

from splitsec.errors import ConfigError
from splitsec.mpc.prg import SEED_BYTES, fresh_seed


def derived_seed(purpose: str, seed: int) -> int:
    """Return another seed of 32 bits for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:4], "big")


class RunRandomness:
    """The source of a client's order of rows and its dropout in one run: its seed, and a secret of this run alone.

    Were two runs equal bit for bit but for one client, the difference of their sums would be that client's update, for
    whoever sees both sums. So what a client does in a run depends on a fresh secret, which it keeps with its
    checkpoints to go on as it began. Without the secret (`repeatable`) two such runs open the client's update.

    Args:
        seed: the client's own; None leaves all to the secret.
        secret: 16 bytes that an earlier start of this run drew, empty if that was repeatable; None draws a fresh one.
        repeatable: draw no secret.

    Attributes:
        seed: the client's own, or 0.
        secret: 16 bytes; empty in a repeatable run.

    Raises:
        ConfigError: a repeatable run without a seed.
    """

    def __init__(self, seed: int | None, *, secret: bytes | None = None, repeatable: bool = False) -> None:
        if repeatable and seed is None:
            raise ConfigError("a repeatable run needs a seed: set one, or leave repeatable out")
        self.seed = 0 if seed is None else seed
        self.secret = (b"" if repeatable else fresh_seed()) if secret is None else secret

    @property
    def order(self) -> int | bytes:
        """Return the seed for `Loader`: 16 secret bytes, or in a repeatable run a number."""
        return self._mixed("order of rows")[:SEED_BYTES] if self.secret else self.seed

    def generator(self) -> OwnRandomness:
        """Return a state of torch's generator for dropout and the like."""
        if not self.secret:
            return OwnRandomness(derived_seed("training", self.seed))
        return OwnRandomness(int.from_bytes(self._mixed("training")[:8], "big") >> 1)

    def _mixed(self, purpose: str) -> bytes:
        return hashlib.sha256(self.secret + f"{purpose}:{self.seed}".encode()).digest()


class OwnRandomness:
    """A party's own state of torch's CPU generator, which the generator has within the `with` block alone.

    It is for dropout and the like: masks, noise and the order of rows come from `mpc.prg`.

    Args:
        seed: None for a random one.

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
