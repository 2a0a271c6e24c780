"""The privacy that a run promises: what the server decides, every client is told and checks for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from splitsec.errors import ConfigError
from splitsec.settings.setting import Bounds, check_bounds, setting

# With less on activations, no grid in float32 is fine beside it.
LEAST_NOISE = 1e-5
Accountant: TypeAlias = Literal["prv", "rdp"]
Unit: TypeAlias = Literal["record", "client"]


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The rules of a run; with the defaults there are none.

    Sources of the accountants, both Opacus's: `prv` S. Gopi et al., "Numerical composition of differential privacy",
    NeurIPS 2021; `rdp` I. Mironov et al., "Rényi differential privacy of the sampled Gaussian mechanism", 2019.
    """

    epsilon: (
        Annotated[
            float, setting("Budget of the whole run at delta; no differential privacy if left out.", Bounds(above=0))
        ]
        | None
    ) = None
    delta: Annotated[float, setting("The budget's delta, at most 1 / records.", Bounds(above=0, below=1))] = 1e-5
    unit: Annotated[Unit, setting("Whom the budget protects: a record of a client, or a client with all its data.")] = (
        "record"
    )
    clip: Annotated[
        float,
        setting(
            "L2 norm to which a unit's contribution to a step is clipped, on both sides of the cut together: a "
            "record's gradient, or a client's update of a round.",
            Bounds(above=0),
        ),
    ] = 1.0
    front_fraction: Annotated[
        float,
        setting(
            "Fraction of the clip given to the client's side where both sides clip separately (local, or unit client); "
            "the tail gets sqrt(1 - front_fraction**2).",
            Bounds(above=0, below=1),
        ),
    ] = 0.5
    local: Annotated[
        bool,
        setting(
            "By record: each client adds all of the noise to steps of its own. Else each adds a part, and the clients' "
            "gradients are summed in every step under masks: clip and noise are then those of one party with all the "
            "data, where server and dealer do not collude."
        ),
    ] = False
    noise: Annotated[
        float,
        setting("Noise multiplier, in multiples of clip; 0 for the least one that keeps the budget.", Bounds(least=0)),
    ] = 0.0
    accountant: Annotated[Accountant, setting("Opacus's accountant.")] = "prv"
    activation_clip: Annotated[
        float,
        setting("L2 norm to which a row's activation is clipped; 0 for none. No promise by itself.", Bounds(least=0)),
    ] = 0.0
    activation_noise: Annotated[
        float,
        setting(
            "Standard deviation of the noise on what crosses the cut in training, in multiples of activation_clip.",
            Bounds(least=0),
        ),
    ] = 0.0
    nopeek: Annotated[
        float,
        setting(
            "Weight of the distance correlation of inputs and activations in the loss. No promise.", Bounds(least=0)
        ),
    ] = 0.0
    protection: Annotated[
        str, setting("A protection of activations from another package, as name or name:argument; empty for none.")
    ] = ""

    @property
    def by_record(self) -> bool:
        """Return whether every step is differentially private by record."""
        return self.epsilon is not None and self.unit == "record"

    @property
    def by_client(self) -> bool:
        """Return whether every round is differentially private by client."""
        return self.epsilon is not None and self.unit == "client"

    @property
    def sums_steps(self) -> bool:
        """Return whether the clients' gradients are summed in every step, under masks and with noise in shares."""
        return self.by_record and not self.local

    @property
    def front_clip(self) -> float:
        """Return the clip of what the client trains."""
        return self.clip * self.front_fraction

    @property
    def tail_clip(self) -> float:
        """Return the clip of what the server trains: with `front_clip` as the other part the whole has norm `clip`."""
        return self.clip * math.sqrt(1 - self.front_fraction**2)


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
    check_bounds(rules, where="privacy.")
    if rules.activation_noise and not rules.activation_clip:
        raise ConfigError("noise on activations is a multiple of their clip: set activation_clip too")
    if 0 < rules.activation_noise < LEAST_NOISE:
        raise ConfigError(
            f"activation_noise = {rules.activation_noise:g} hides nothing: write {LEAST_NOISE:g} or more, or 0 for none"
        )
    _check_idle(rules)
    if rules.local and not rules.by_record:
        raise ConfigError("noise that each client adds by itself belongs to a budget by record")
    if rules.noise and not rules.epsilon:
        raise ConfigError("a noise multiplier without a budget promises nothing: set epsilon too")
    if rules.nopeek and rules.by_record:
        raise ConfigError(
            "NoPeek's distance correlation mixes the rows of a batch, so that no gradient is one record's alone: use "
            "either nopeek or a budget by record"
        )


def _check_idle(rules: Privacy) -> None:
    """Raise `ConfigError` for a rule of a budget where there is none, or of a clip that is not divided."""
    defaults = Privacy()
    for name in ("unit", "clip", "front_fraction", "accountant", "delta"):
        value = getattr(rules, name)
        if value == getattr(defaults, name) or (name == "delta" and rules.activation_noise):
            continue
        shown = f'"{value}"' if isinstance(value, str) else f"{value:g}"
        if not rules.epsilon:
            raise ConfigError(f"{name} = {shown} does nothing without a budget: set epsilon too")
        if name == "front_fraction" and rules.sums_steps:
            raise ConfigError(
                f"front_fraction = {shown} does nothing where both sides of the cut clip together: it is for local = "
                "true, or a budget by client"
            )


def check_epsilon(epsilon: float) -> None:
    """Raise `ConfigError` unless a budget's epsilon is positive and finite."""
    if not 0 < epsilon < math.inf:
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
