"""What a protection of activations is, and the registry of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from splitsec.errors import ConfigError
from splitsec.privacy.ledger import Ledger
from splitsec.registry import Registry
from splitsec.settings.privacy import Privacy


class Protection:
    """What one client does to the activations that it sends in a run's training; by default nothing.

    Attributes:
        changes_output: whether `attach` changes what the front returns.
    """

    changes_output = False

    def attach(self, front: nn.Module) -> nn.Module:
        """Change what the front returns, with a forward hook, and return the front.

        What a hook does to a front in eval mode is done in predictions of this process as well.
        """
        return front

    def term(self, inputs: torch.Tensor, activation: torch.Tensor) -> torch.Tensor | None:
        """Return what is added to the loss of a step, a scalar with a gradient; None for nothing.

        Args:
            inputs: of the front, (rows, ...).
            activation: what the front made of them, (rows, ...).
        """
        return None

    def charge(self, ledger: Ledger, batches: Sequence[torch.Tensor]) -> None:
        """Note in the client's ledger what a round costs and promises, before its first step; by default no promise.

        Args:
            batches: of the round, the numbers of the rows in each, int64.
        """
        name = type(self).__name__
        ledger.charge(name, covers="promises nothing", noise=0, rate=1.0, steps=1, parameters=self.parameters)

    @property
    def parameters(self) -> dict[str, float]:
        """Return the figures that the ledger shows."""
        return {}


# Takes the run's rules and the number of the client's rows; returns None where the rules leave the protection out.
MakeProtection: TypeAlias = Callable[[Privacy, int], Protection | None]
PROTECTIONS: Registry[MakeProtection] = Registry("protection", package="splitsec.training.protections")


def argument_of(rules: Privacy, name: str) -> str | None:
    """Return what stands behind the colon of `privacy.protection`, empty if nothing; None if it names another."""
    chosen, _, argument = rules.protection.partition(":")
    return argument if chosen == name else None


def protections_of(rules: Privacy, samples: int) -> tuple[Protection, ...]:
    """Return the protections that a run's rules switch on, for a client with this number of rows.

    Raises:
        ConfigError: `privacy.protection` names none that is known here, or one that has settings of its own.
    """
    chosen = rules.protection.partition(":")[0]
    if chosen and PROTECTIONS.get(chosen)(rules, samples) is None:
        raise ConfigError(
            f"the protection '{chosen}' has settings of its own under privacy: leave privacy.protection out"
        )
    protections = (make(rules, samples) for make in PROTECTIONS)
    return tuple(protection for protection in protections if protection is not None)
