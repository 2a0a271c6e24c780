"""A relay: one client trains in each round, and hands its segments to the next under a pad that the two alone know.

The server passes the vectors on and reads none. Nor does it with the help of a third client, since every pair of
clients has a seed of its own. Who is next is known before a round begins; where that client has gone, the holder of the
newest segments is asked for them once more, for another. After the last round all clients get them.

The order of turns: O. Gupta and R. Raskar, "Distributed learning of deep neural network over multiple agents", Journal
of Network and Computer Applications 2018, section 3.2. The pads are one-time pads from AES-CTR (see `mpc.prg`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from splitsec.errors import MessageError, PartyTimeoutError
from splitsec.settings.run import RunSettings
from splitsec.training.aggregation.base import (
    RULES,
    ClientAggregation,
    Member,
    Rule,
    Seeds,
    ServerAggregation,
    replaced,
)
from splitsec.training.aggregation.masking import hand_over, take_over
from splitsec.training.front import FrontTrainer
from splitsec.training.messages import Combined
from splitsec.transport import NamedTensors, expect_shape


def turn_of(clients: Sequence[str], round_number: int) -> str:
    """Return the client that trains in a round."""
    return clients[round_number % len(clients)]


def receivers(clients: Sequence[str], round_number: int, rounds: int) -> tuple[str, ...]:
    """Return to whom the client that trains in a round hands its segments: the next, and after the last round all."""
    name = turn_of(clients, round_number)
    following = clients if round_number + 1 >= rounds else (turn_of(clients, round_number + 1),)
    return tuple(client for client in following if client != name)


class RelayAtServer(ServerAggregation):
    """Holds vectors under pads for the clients that they are for, and knows which client has the newest segments.

    Attributes:
        holder: the client that trained last; empty before the first turn, when all clients have the same segments.
        lost: the holder was started again without its segments, so that only the held vectors have them.
    """

    takes_turns = True

    def __init__(self, settings: RunSettings) -> None:
        super().__init__(settings)
        self.holder = ""
        self.lost = False
        self._pad = 0
        self._clients = settings.clients
        self._sealed: dict[str, torch.Tensor] = {}
        # The clients that their vector was sent to, so that they have the newest segments too.
        self._sent: set[str] = set()

    @property
    def pad(self) -> int:
        return self._pad

    @property
    def minimum(self) -> int:
        # A round whose client is not there is left out.
        return 0

    def trainers(self, round_number: int, there: Sequence[str]) -> list[str]:
        name = turn_of(self._clients, round_number)
        if there and not any(self.can_train(client, there) for client in there):
            raise PartyTimeoutError(
                f"the newest segments of this relay are with {self.holder}, which is gone: start it again with its "
                "checkpoints, or begin a new run"
            )
        return [name] if name in there and self.can_train(name, there) else []

    def add_upload(
        self, name: str, masked: Sequence[torch.Tensor], *, length: int, round_number: int, rounds: int
    ) -> torch.Tensor | None:
        names = receivers(self._clients, round_number, rounds)
        self._sealed = dict(zip(names, _checked(masked, len(names), length), strict=True))
        self.holder, self._pad, self.lost = name, 2 * round_number, False
        self._sent = set()
        return None

    def end_for(self, name: str, done: Combined, owed: Sequence[str]) -> tuple[Combined, NamedTensors]:
        told = replaced(done, holder=self.holder, lost=self.lost, pad=self._pad, owed=tuple(owed))
        return told, {"sealed": self.sealed_for(name)}

    def started_again(self, name: str, *, has_segments: bool) -> None:
        """Note that a client was started again, with the segments of the last round's end or without."""
        if not has_segments:
            self._sent.discard(name)
            self.lost = self.lost or name == self.holder

    def renew(self) -> None:
        """Forget the vectors under pads of seeds that have been replaced; their holder seals them anew when asked."""
        self._sealed = {}

    def hand_on(self, name: str, names: Sequence[str], round_number: int, vectors: Sequence[torch.Tensor]) -> None:
        """Take vectors of the holder for the clients in `names`, who were owed them.

        Raises:
            MessageError: they come from another client, or are not as many as are due.
        """
        if name != self.holder:
            raise MessageError(f"{name} does not hold the segments of this relay")
        self._sealed = dict(zip(names, _checked(vectors, len(names), None), strict=True))
        self._pad = 2 * round_number + 1

    def sealed_for(self, name: str) -> torch.Tensor | None:
        """Return the vector that is held for a client, if there is one: it is sent to it now."""
        if name in self._sealed:
            self._sent.add(name)
        return self._sealed.get(name)

    def owed(self, round_number: int, rounds: int, there: Collection[str]) -> tuple[str, ...]:
        """Return the clients that need the newest segments before a round begins and have not got them.

        Args:
            round_number: the round that begins; `rounds` if the run is over.
            there: the clients that are there: the holder must be among them to be asked. After the last round all
                clients need the segments, also those that come later.
        """
        if self.lost or self.holder not in there:
            self._replace_holder(there)
        if not self.holder or self.lost or self.holder not in there:
            return ()
        following = turn_of(self._clients, round_number)
        needing = self._clients if round_number >= rounds else (following,) if following in there else ()
        return tuple(name for name in needing if name != self.holder and name not in self._sealed)

    def _replace_holder(self, there: Collection[str]) -> None:
        """Let a client that got the newest segments hold them in the place of one that is gone."""
        others = [name for name in self._clients if name in self._sent and name in there]
        if others:
            self.holder, self.lost, self._sealed, self._sent = others[0], False, {}, set()

    def serves(self, name: str) -> bool:
        """Whether a client has the newest segments when the run is over, or they are held for it."""
        return name in self._sealed or not self.holder or (name == self.holder and not self.lost)

    def can_train(self, name: str, there: Collection[str]) -> bool:
        """Whether a client can get the newest segments: it has them, they are held for it, or their holder is there."""
        if not self.holder or name in self._sealed:
            return True
        return not self.lost and (name == self.holder or self.holder in there)


class RelayAtClient(ClientAggregation):
    """Trains when it is this client's turn, and hands its segments over under pads.

    Attributes:
        stale: another client has newer segments, which have not come yet.
        owes: the clients that are to be sent the segments once more.
    """

    paired = True

    def __init__(self, member: Member) -> None:
        super().__init__(member)
        self.stale = False
        self.owes: tuple[str, ...] = ()
        self._name = member.name
        self._clients = member.settings.clients

    def trains(self, round_number: int) -> bool:
        return turn_of(self._clients, round_number) == self._name

    def passes(self, round_number: int) -> int:
        return round_number // len(self._clients)

    def upload(
        self, vector: torch.Tensor, trainer: FrontTrainer, seeds: Seeds, *, weight: int, round_number: int, rounds: int
    ) -> NamedTensors:
        names = receivers(self._clients, round_number, rounds)
        return {"masked": self.seal(vector, names, seeds, number=2 * round_number)}

    def again(self, vector: torch.Tensor, seeds: Seeds, round_number: int) -> list[torch.Tensor]:
        return self.seal(vector, self.owes, seeds, number=2 * round_number + 1)

    def seal(self, vector: torch.Tensor, names: Sequence[str], seeds: Seeds, *, number: int) -> list[torch.Tensor]:
        """Return the segments under the pad with a number for each of `names`, int64.

        Raises:
            RandomnessError: a pad has been used before.
        """
        for name in names:
            self._member.used.add(seeds.pairs[name], name, str(number), what=f"pad {number} of {self._name} for {name}")
        return [
            hand_over(vector, seed=seeds.pairs[name], sender=self._name, receiver=name, number=number) for name in names
        ]

    def opened(self, done: Combined, tensors: NamedTensors, seeds: Seeds, rounds: int) -> torch.Tensor | None:
        """Note which client has the newest segments, and open them where they are here.

        Raises:
            MessageError: the server wants this client's segments for one whose turn it is not.
        """
        following = self._clients if done.round + 1 >= rounds else (turn_of(self._clients, done.round + 1),)
        if not set(done.owed) <= set(following):
            raise MessageError("the server asks for segments for a client whose turn it is not")
        sealed: torch.Tensor | None = tensors.get("sealed")
        self.stale = sealed is None and (done.lost or done.holder not in ("", self._name))
        self.owes = done.owed if done.holder == self._name else ()
        return None if sealed is None else self.open(sealed, done.holder, done.pad, seeds)

    def opened_late(self, vectors: Sequence[torch.Tensor], sender: str, pad: int, seeds: Seeds) -> torch.Tensor | None:
        return self.open(vectors[0], sender, pad, seeds) if self.stale and len(vectors) == 1 else None

    def open(self, vector: torch.Tensor, sender: str, number: int, seeds: Seeds) -> torch.Tensor:
        """Return the segments that another client has sealed for this one, float64.

        Raises:
            MessageError: the sender is no client of the run, or the vector has another length.
        """
        if sender not in seeds.pairs:
            raise MessageError(f"{sender} hands segments over and takes no part in this run")
        expect_shape(vector, (self._member.length,), what="what was handed over")
        self.stale = False
        return take_over(vector, seed=seeds.pairs[sender], sender=sender, receiver=self._name, number=number)


def _checked(vectors: Sequence[torch.Tensor], count: int, length: int | None) -> list[torch.Tensor]:
    if len(vectors) != count:
        raise MessageError(f"{count} vectors are due in a relay here, not {len(vectors)}")
    return [expect_shape(vector, (length,), what="the segments handed over") for vector in vectors]


RULES.register("relay")(Rule(RelayAtServer, RelayAtClient))
