"""The privacy that a run promises: what the server decides, every client is told and checks for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from splitsec.errors import ConfigError

# With less on activations, no grid in float32 is fine beside it.
LEAST_NOISE = 1e-5
Accountant: TypeAlias = Literal["prv", "rdp"]
Unit: TypeAlias = Literal["record", "client"]


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of a run; with the defaults there are none.

    Attributes:
        epsilon: the budget of the whole run at `delta`; 0 for no differential privacy.
        unit: whom the guarantee covers: one `record` of a client, or a `client` with all its data.
        clip: L2 norm to which one unit's contribution to a step is clipped, both sides of the cut together: of a record
            its gradient, of a client its update of a round.
        front: where each side of the cut clips by itself, with `local` or by client, how much of the clip is that of
            the front (and the head): `front * clip`, and the tail's what is left of `clip`.
        local: by record, whether each client adds all of the noise to steps of its own. Else each adds a share, and the
            clients' gradients are summed in every step under masks: clip and noise are then those of one party with
            all the data, where server and dealer do not collude.
        noise: the noise multiplier, as a multiple of `clip`; 0 to find the least one that keeps the budget.
        accountant: of Opacus: `prv` (S. Gopi et al., "Numerical composition of differential privacy", NeurIPS 2021) or
            `rdp` (I. Mironov et al., "Rényi differential privacy of the sampled Gaussian mechanism", 2019).
        activation_clip: L2 norm of one row's activation; 0 for none. No promise by itself.
        activation_noise: standard deviation of the noise on what crosses the cut in training, as a multiple of
            `activation_clip`.
        nopeek: weight of the distance correlation between inputs and activations in the front's loss. No promise.
    """

    epsilon: float = 0.0
    delta: float = 1e-5
    unit: Unit = "record"
    clip: float = 1.0
    front: float = 0.5
    local: bool = False
    noise: float = 0.0
    accountant: Accountant = "prv"
    activation_clip: float = 0.0
    activation_noise: float = 0.0
    nopeek: float = 0.0

    @property
    def by_record(self) -> bool:
        """Whether every step is differentially private by record."""
        return self.epsilon > 0 and self.unit == "record"

    @property
    def by_client(self) -> bool:
        """Whether every round is differentially private by client."""
        return self.epsilon > 0 and self.unit == "client"

    @property
    def sums_steps(self) -> bool:
        """Whether the clients' gradients are summed in every step, under masks and with noise in shares."""
        return self.by_record and not self.local

    @property
    def front_clip(self) -> float:
        """The clip of what the client trains."""
        return self.clip * self.front

    @property
    def tail_clip(self) -> float:
        """The clip of what the server trains: with `front_clip` as the other part the whole has norm `clip`."""
        return self.clip * math.sqrt(1 - self.front**2)


@dataclass(frozen=True)
class GradientNoise:
    """How one side of the cut makes its step.

    Attributes:
        clip: L2 norm of one record's gradient at this side.
        std: of the noise on every value of the sum; 0 where it is added to a sum over all clients.
    """

    clip: float
    std: float


def check_privacy(rules: Privacy) -> None:
    """Raise `ConfigError` for rules that promise nothing or contradict each other, saying what to change."""
    check_epsilon(rules.epsilon, zero=True)
    check_delta(rules.delta)
    numbers = {"clip": rules.clip, "noise": rules.noise, "nopeek": rules.nopeek}
    numbers |= {"activation_clip": rules.activation_clip, "activation_noise": rules.activation_noise}
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} = {value:g}: write a finite number from 0 on")
    if not 0 < rules.front < 1:
        raise ConfigError(
            f"the front's part of the clip is {rules.front:g}; write a number between 0 and 1, such as 0.3"
        )
    if not rules.clip:
        raise ConfigError("a clip of 0 would leave nothing to learn from; 1 is a usual one")
    if rules.activation_noise and not rules.activation_clip:
        raise ConfigError("noise on activations is a multiple of their clip: set it too (--activation-clip)")
    if 0 < rules.activation_noise < LEAST_NOISE:
        raise ConfigError(
            f"activation_noise = {rules.activation_noise:g} hides nothing: write {LEAST_NOISE:g} or more, or 0 for none"
        )
    _check_idle(rules)
    if rules.local and not rules.by_record:
        raise ConfigError("noise that each client adds by itself belongs to a budget by record")
    if rules.noise and not rules.epsilon:
        raise ConfigError("a noise multiplier without a budget promises nothing: set epsilon too (--dp-epsilon)")
    if rules.nopeek and rules.by_record:
        raise ConfigError(
            "NoPeek's distance correlation mixes the rows of a batch, so that no gradient is one record's alone: use "
            "either nopeek or a budget by record"
        )


def _check_idle(rules: Privacy) -> None:
    """Raise `ConfigError` for a rule of a budget where there is none, or of a clip that is not divided."""
    defaults = Privacy()
    for name in ("unit", "clip", "front", "accountant", "delta"):
        value = getattr(rules, name)
        if value == getattr(defaults, name) or (name == "delta" and rules.activation_noise):
            continue
        shown = f'"{value}"' if isinstance(value, str) else f"{value:g}"
        if not rules.epsilon:
            raise ConfigError(f"{name} = {shown} does nothing without a budget: set epsilon too (--dp-epsilon)")
        if name == "front" and rules.sums_steps:
            raise ConfigError(
                f"front = {shown} does nothing where both sides of the cut clip together: it is for local = true, or a "
                "budget by client"
            )


def check_epsilon(epsilon: float, *, zero: bool = False) -> None:
    """Raise `ConfigError` unless a budget's epsilon is positive and finite (or 0, for none)."""
    if not (0 < epsilon < math.inf or (zero and epsilon == 0)):
        raise ConfigError(f"an epsilon of {epsilon:g} is no budget: write a number above 0, such as 3")


def check_delta(delta: float, samples: int | None = None, what: str = "records") -> None:
    """Raise `ConfigError` unless 0 < delta < 1 and, where the number of samples is known, at most 1 / samples."""
    if not 0 < delta < 1:
        raise ConfigError(f"a delta of {delta:g} is none: write a number between 0 and 1, such as 1e-5")
    if samples is not None and delta > 1 / samples:
        raise ConfigError(
            f"a delta of {delta:g} is above 1/{samples}, with {samples} {what}: a mechanism that publishes one of them "
            f"would pass; write at most {1 / samples:.1g}"
        )
