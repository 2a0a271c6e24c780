"""The schedule of a run: what the server decides and every client is told."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec

from splitsec.errors import ConfigError
from splitsec.privacy.rules import Privacy, check_privacy
from splitsec.training.compression import check_compression

Combine: TypeAlias = Literal["average", "relay", "none"]
Join: TypeAlias = Literal["concat", "sum"]
MOST_IN_FLIGHT = 16


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes part in a run, for how long, and how their segments are combined.

    A round is what lies between two combinings: an epoch of every client's data, or `every` steps of each.

    Attributes:
        clients: their names; the order in which a relay goes round.
        batch_size: of each client.
        combine: `average` combines the clients' segments at the end of each round; `relay` lets one client train in
            each round and hands its segments to the next; `none` leaves every client its own.
        every: steps between two combinings; 0 for an epoch.
        minimum: no average of fewer clients is opened.
        in_flight: batches of a client that are on their way at once. With more than one a gradient belongs to
            weights that are so many steps older (see `FrontTrainer`).
        proximal: weight of FedProx's term, which holds a client's segments near the last combined ones.
        server_momentum: of the change from one average to the next.
        decay: whether the learning rate falls to nothing over the rounds, along a cosine.
        compress: how activations and gradients travel, see `training.compression`.
        join: for clients that hold columns of the same people: how the server joins their activations. Their fronts
            differ and are never combined.
        order: for such clients, the seed of the order of rows, which all must use.
        held_out: for such clients, the share of common rows that is not trained on.
        halves: every client trains a part of the model by itself and gives it under a mask; nobody knows the whole.
        privacy: what the run promises.
    """

    clients: tuple[str, ...]
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 2e-3
    combine: Combine = "average"
    every: int = 0
    minimum: int = 2
    in_flight: int = 1
    proximal: float = 0.0
    server_momentum: float = 0.0
    decay: bool = False
    compress: str = "none"
    join: Join | None = None
    order: int = 0
    held_out: float = 0.2
    halves: bool = False
    privacy: Privacy = Privacy()

    def rate(self, number: int, rounds: int) -> float:
        """The learning rate in a round; I. Loshchilov and F. Hutter, "SGDR", ICLR 2017, section 3, without restarts."""
        if not self.decay:
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * number / rounds)) / 2

    def rounds(self, samples: int) -> int:
        """How many rounds the run has, where the clients have so many samples together."""
        if self.combine == "relay":
            return self.epochs * len(self.clients)
        if not self.every:
            return self.epochs
        steps = math.ceil(samples / (self.batch_size * len(self.clients)))
        return math.ceil(self.epochs * steps / self.every)


def check_schedule(schedule: Schedule) -> None:
    """Raise `ConfigError` for a schedule that cannot work, saying what to change."""
    names = schedule.clients
    if len(set(names)) != len(names) or not names:
        raise ConfigError("the clients of a run need different names")
    if schedule.combine == "average":
        if len(names) < 2:
            raise ConfigError(
                "a run needs at least two different clients: the average over one would show its parameters"
            )
        if not 2 <= schedule.minimum <= len(names):
            raise ConfigError(
                f"the minimum of {schedule.minimum} clients in an average must lie between 2 and the {len(names)} "
                "clients of the run"
            )
    elif schedule.minimum != 2 and schedule.join is None and not schedule.halves:
        raise ConfigError(
            f"minimum = {schedule.minimum} does nothing with combine = '{schedule.combine}': it is that of an average; "
            "leave it out"
        )
    if schedule.join is not None and (schedule.combine != "none" or len(names) < 2):
        raise ConfigError("columns are joined of at least two clients, whose fronts are not combined: combine = 'none'")
    if schedule.halves and (schedule.epochs or len(names) < 2):
        raise ConfigError("parts of a model come from at least two clients, which train by themselves: epochs = 0")
    if schedule.join is not None and schedule.every:
        raise ConfigError("clients whose columns are joined have nothing to combine between epochs: leave every at 0")
    if not 0 <= schedule.held_out < 1:
        raise ConfigError("the share of rows that is held out must be at least 0 and below 1")
    if schedule.epochs < 0 or schedule.batch_size < 1 or not schedule.learning_rate > 0:
        raise ConfigError("epochs must be 0 or more, the batch size 1 or more, the learning rate above 0")
    if schedule.every < 0:
        raise ConfigError("the steps between two combinings must be 1 or more, or 0 for an epoch")
    if not 1 <= schedule.in_flight <= MOST_IN_FLIGHT:
        raise ConfigError(f"the batches in flight must be between 1 and {MOST_IN_FLIGHT}")
    if not 0 <= schedule.server_momentum < 1 or not 0 <= schedule.proximal < float("inf"):
        raise ConfigError("the server's momentum must be at least 0 and below 1, FedProx's weight at least 0")
    if schedule.combine != "average" and (schedule.server_momentum or schedule.proximal):
        raise ConfigError("the server's momentum and FedProx need averages; leave them at 0 or use combine = 'average'")
    check_compression(schedule.compress)
    _check_private(schedule)


def _check_private(schedule: Schedule) -> None:
    rules = schedule.privacy
    check_privacy(rules)
    if rules == Privacy():
        return
    if schedule.halves:
        raise ConfigError("a part of a model is trained by its client alone: train it with Opacus, and give the result")
    if schedule.join is not None and (rules.epsilon or rules.nopeek):
        raise ConfigError(
            "clients whose columns are joined get gradients row by row, which depend on the others' columns of the "
            "same person: no noise in the steps would hide those from them, so a budget promises nothing; leave it out"
        )
    if rules.by_client and schedule.combine != "average":
        raise ConfigError("differential privacy by client lies in the average: combine = 'average'")
    if not rules.by_record:
        return
    if rules.sums_steps and (schedule.combine != "average" or schedule.every != 1):
        raise ConfigError(
            "noise in shares is added to the sum of each step: combine = 'average' and every = 1; or let every client "
            "add all of the noise by itself: local = true (--dp-local)"
        )
    if rules.sums_steps and schedule.server_momentum:
        raise ConfigError("where gradients are summed in every step, Adam has its own momentum: server_momentum = 0")
    if schedule.combine == "relay":
        raise ConfigError(
            "differential privacy by record takes all clients in each step: combine = 'average' or 'none'"
        )
    if schedule.in_flight > 1:
        raise ConfigError("differential privacy by record goes step by step: in_flight = 1")
    if schedule.proximal:
        raise ConfigError("FedProx is not built for differential privacy by record: proximal = 0")
