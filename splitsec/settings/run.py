"""The settings of a run: what the server decides and every client is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from splitsec.cut.joined import Join
from splitsec.errors import ConfigError
from splitsec.registry import Registry
from splitsec.settings.compression import check_compression
from splitsec.settings.privacy import Privacy, check_privacy
from splitsec.settings.setting import Bounds, check_bounds, setting

MOST_IN_FLIGHT = 16
MOST_SEED = (1 << 63) - 1
# The layout in which nothing is trained together: each client gives a part of the model.
MODEL_PARTS = "model_parts"


@dataclass(frozen=True)
class RuleTraits:
    """What settings of a run need to know of its rule of aggregation.

    Attributes:
        averages: whether it adds vectors of several clients, so that `minimum_clients`, `server_momentum` and
            `proximal` act.
        combines: whether clients end a round with common segments.
    """

    averages: bool = False
    combines: bool = True


RULE_TRAITS: Registry[RuleTraits] = Registry("rule of aggregation")
RULE_TRAITS.register("average")(RuleTraits(averages=True))
RULE_TRAITS.register("relay")(RuleTraits())
RULE_TRAITS.register("none")(RuleTraits(combines=False))


@dataclass(frozen=True, kw_only=True)
class Training:
    """How clients and server learn, and how the clients' segments are combined.

    A round is what lies between two aggregations: an epoch of every client's data, or `steps_per_round` steps of each.
    """

    epochs: Annotated[int, setting("Epochs of training; 0 for predictions alone.", Bounds(least=0), grows=True)] = 30
    batch_size: Annotated[int, setting("Rows of each client in a step.", Bounds(least=1), unit="rows")] = 32
    learning_rate: Annotated[float, setting("Learning rate of Adam, at clients and server.", Bounds(above=0))] = 2e-3
    decay: Annotated[bool, setting("Let the learning rate fall to nothing over the rounds, along a cosine.")] = False
    batches_in_flight: Annotated[
        int,
        setting(
            "Batches of a client on their way at once; with more than one a gradient belongs to older weights.",
            Bounds(least=1, most=MOST_IN_FLIGHT),
        ),
    ] = 1
    compression: Annotated[
        str, setting("How activations and gradients travel: none, float16, bfloat16 or topk:FRACTION.")
    ] = "none"
    aggregation: Annotated[
        str,
        setting(
            "How the clients' segments are combined at the end of a round: average; relay, where one client trains in "
            "each round and hands its segments on; none, where each keeps its own; or a rule of another package."
        ),
    ] = "average"
    steps_per_round: (
        Annotated[
            int, setting("Steps of each client between two aggregations; an epoch if it is left out.", Bounds(least=1))
        ]
        | None
    ) = None
    minimum_clients: Annotated[
        int, setting("Fewest clients in an average: no sum of fewer is ever opened.", Bounds(least=2))
    ] = 2
    server_momentum: Annotated[
        float, setting("Momentum of the change from one average to the next.", Bounds(least=0, below=1))
    ] = 0.0
    proximal: Annotated[
        float, setting("Weight of FedProx's term, which holds segments near the last average.", Bounds(least=0))
    ] = 0.0
    privacy: Annotated[Privacy, setting("What the run promises of the data's privacy.")] = field(
        default_factory=Privacy
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings(Training):
    """Who takes part in a run, in which layout, for how long, and how segments are combined.

    Example:
        >>> RunSettings(clients=("ward-a", "ward-b"), epochs=10).epochs
        10
    """

    clients: Annotated[
        tuple[str, ...],
        setting("Names of the clients; the order in which a relay goes round.", example='["ward-a", "ward-b"]'),
    ]
    layout: (
        Annotated[
            str,
            setting(
                "Who holds what: horizontal (rows with labels), u (rows whose labels stay with the clients), vertical "
                "(columns of the same people), model_parts (parts of a model), or a layout of another package. If left "
                "out, a cut with two names is u, and any other horizontal."
            ),
        ]
        | None
    ) = None
    join: (
        Annotated[Join, setting("Vertical: how the clients' activations are joined; the model says so too.")] | None
    ) = None
    row_order_seed: Annotated[
        int, setting("Vertical: seed of the order of rows, which all clients share.", Bounds(least=0, most=MOST_SEED))
    ] = 0
    held_out: Annotated[
        float, setting("Vertical: fraction of the common rows that is not trained on.", Bounds(least=0, below=1))
    ] = 0.2

    @property
    def rule(self) -> RuleTraits:
        """Return what is known of the rule of aggregation; raises `ConfigError` if there is none of that name."""
        return RULE_TRAITS.get(self.aggregation)

    @property
    def in_parts(self) -> bool:
        """Return whether clients give a model in parts that each has trained alone."""
        return self.layout == MODEL_PARTS

    def rate(self, number: int, rounds: int) -> float:
        """Return the learning rate in a round.

        I. Loshchilov and F. Hutter, "SGDR", ICLR 2017, section 3, without restarts.
        """
        if not self.decay:
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * number / rounds)) / 2

    def rounds(self, samples: int) -> int:
        """Return how many rounds the run has, where the clients have `samples` rows together."""
        if self.aggregation == "relay":
            return self.epochs * len(self.clients)
        if not self.steps_per_round:
            return self.epochs
        steps = math.ceil(samples / (self.batch_size * len(self.clients)))
        return math.ceil(self.epochs * steps / self.steps_per_round)


def check_run_settings(settings: RunSettings) -> None:
    """Raise `ConfigError` for settings that cannot work together, saying what to change."""
    check_bounds(settings)
    names = settings.clients
    if len(set(names)) != len(names) or not names:
        raise ConfigError("the clients of a run need different names")
    if settings.rule.averages:
        if len(names) < 2:
            raise ConfigError(
                "a run needs at least two different clients: the average over one would show its parameters"
            )
        if settings.minimum_clients > len(names):
            raise ConfigError(
                f"minimum_clients = {settings.minimum_clients} must lie between 2 and the {len(names)} clients of the "
                "run"
            )
    elif settings.minimum_clients != 2 and settings.join is None and not settings.in_parts:
        raise ConfigError(
            f"minimum_clients = {settings.minimum_clients} does nothing with aggregation = '{settings.aggregation}': "
            "it is that of an average; leave it out"
        )
    _check_layout(settings)
    if not settings.rule.averages and (settings.server_momentum or settings.proximal):
        raise ConfigError(
            "the server's momentum and FedProx need averages; leave them at 0 or use aggregation = 'average'"
        )
    check_compression(settings.compression)
    _check_private(settings)


def _check_layout(settings: RunSettings) -> None:
    few = len(settings.clients) < 2
    if settings.join is not None and (settings.aggregation != "none" or few):
        raise ConfigError(
            "columns are joined of at least two clients, whose fronts are not combined: aggregation = 'none'"
        )
    if settings.in_parts and (settings.epochs or few):
        raise ConfigError("parts of a model come from at least two clients, which train by themselves: epochs = 0")
    if settings.join is not None and settings.steps_per_round:
        raise ConfigError(
            "clients whose columns are joined have nothing to combine between epochs: leave steps_per_round out"
        )
    if settings.layout not in (None, "vertical") and settings.join is not None:
        raise ConfigError(f"layout = '{settings.layout}' is not for columns: leave join out")


def _check_private(settings: RunSettings) -> None:
    rules = settings.privacy
    check_privacy(rules)
    if rules == Privacy():
        return
    if settings.in_parts:
        raise ConfigError("a part of a model is trained by its client alone: train it with Opacus, and give the result")
    if settings.join is not None and (rules.epsilon or rules.nopeek):
        raise ConfigError(
            "clients whose columns are joined get gradients row by row, which depend on the others' columns of the "
            "same person: no noise in the steps would hide those from them, so a budget promises nothing; leave it out"
        )
    if rules.by_client and settings.aggregation != "average":
        raise ConfigError("differential privacy by client lies in the average: aggregation = 'average'")
    if rules.by_record:
        _check_by_record(settings)


def _check_by_record(settings: RunSettings) -> None:
    rules = settings.privacy
    if rules.sums_steps and (settings.aggregation != "average" or settings.steps_per_round != 1):
        raise ConfigError(
            "noise in shares is added to the sum of each step: aggregation = 'average' and steps_per_round = 1; or let "
            "every client add all of the noise by itself: privacy.local = true"
        )
    if rules.sums_steps and settings.server_momentum:
        raise ConfigError("where gradients are summed in every step, Adam has its own momentum: server_momentum = 0")
    if settings.aggregation == "relay":
        raise ConfigError(
            "differential privacy by record takes all clients in each step: aggregation = 'average' or 'none'"
        )
    if settings.batches_in_flight > 1:
        raise ConfigError("differential privacy by record goes step by step: batches_in_flight = 1")
    if settings.proximal:
        raise ConfigError("FedProx is not built for differential privacy by record: proximal = 0")
