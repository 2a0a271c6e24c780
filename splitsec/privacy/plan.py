"""What a run's budget comes to once all samples are known: rate, noise and steps."""

from __future__ import annotations

import math

import msgspec

from splitsec.errors import ConfigError
from splitsec.privacy.accounting import epsilon_of, noise_for, steps_allowed
from splitsec.settings.privacy import GradientNoise, Privacy, check_delta


class PrivacyPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mechanism of a run, the same at all its parties.

    Attributes:
        noise: its noise multiplier.
        rate: of the Poisson sampling.
        steps: of the mechanism in one round.
        per_epoch: training steps in an epoch.
    """

    noise: float
    rate: float
    steps: int
    per_epoch: int

    def epsilon(self, rules: Privacy, steps: int) -> float:
        """Return the epsilon of `steps` steps of the mechanism."""
        history = [(self.noise, self.rate, steps)]
        return epsilon_of(history, delta=rules.delta, accountant=rules.accountant)

    def front(self, rules: Privacy) -> GradientNoise:
        """Return how the client steps: clipped to its part, or to the whole where steps are summed."""
        return GradientNoise(rules.clip if rules.sums_steps else rules.front_clip, self.noise * rules.clip)

    def tail(self, rules: Privacy) -> GradientNoise:
        """Return how the server steps."""
        return GradientNoise(rules.clip if rules.sums_steps else rules.tail_clip, self.noise * rules.clip)

    def allowed(self, rules: Privacy, most: int) -> int:
        """How many steps of the mechanism keep the budget, at most `most`."""
        return steps_allowed(
            noise=self.noise,
            rate=self.rate,
            epsilon=rules.epsilon or 0.0,
            delta=rules.delta,
            accountant=rules.accountant,
            most=most,
        )


def make_plan(
    rules: Privacy, *, samples: int, clients: int, batch_size: int, every: int | None, rounds: int
) -> PrivacyPlan:
    """Return the plan of a run.

    By record, `samples` are sampled at the rate at which an epoch is one pass over them in batches of `batch_size` a
    client; by client, all take part in each round, which is one step.

    Args:
        every: steps in a round; None for an epoch.

    Raises:
        ConfigError: delta is above 1 over the number of those whom it is to protect.
    """
    per_epoch = max(1, math.ceil(samples / (batch_size * clients)))
    if rules.unit == "record":
        check_delta(rules.delta, samples)
        rate, steps = 1 / per_epoch, every or per_epoch
    else:
        check_delta(rules.delta, clients, "clients")
        rate, steps = 1.0, 1
    if not rounds:
        raise ConfigError("a run without rounds spends no budget: leave epsilon out")
    noise = rules.noise or noise_for(
        epsilon=rules.epsilon or 0.0, delta=rules.delta, rate=rate, steps=steps * rounds, accountant=rules.accountant
    )
    return PrivacyPlan(noise, rate, steps, per_epoch)
