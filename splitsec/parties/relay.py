"""A relay: one client trains in each round, and hands its segments to the next under a pad that the two alone know.

The server passes the vectors on and reads none. Nor does it with the help of a third client, since every pair of
clients has a seed of its own. Who is next is known before a round begins; where that client has gone, the holder of the
newest segments is asked for them once more, for another. After the last round all clients get them.

The order of turns: O. Gupta and R. Raskar, "Distributed learning of deep neural network over multiple agents", Journal
of Network and Computer Applications 2018, section 3.2. The pads are one-time pads from AES-CTR (see `mpc.prg`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from splitsec.errors import MessageError, PartyTimeoutError
from splitsec.training.aggregation import OneTime, hand_over, take_over
from splitsec.training.messages import Combined
from splitsec.transport import expect_tensor


def turn_of(clients: Sequence[str], round_number: int) -> str:
    """Return the client that trains in a round."""
    return clients[round_number % len(clients)]


def receivers(clients: Sequence[str], round_number: int, rounds: int) -> tuple[str, ...]:
    """Return to whom the client that trains in a round hands its segments: the next, and after the last round all."""
    name = turn_of(clients, round_number)
    following = clients if round_number + 1 >= rounds else (turn_of(clients, round_number + 1),)
    return tuple(client for client in following if client != name)


class RelayBook:
    """The server's half: who has the newest segments, and the vectors under pads that it holds for others.

    Attributes:
        holder: who trained last; empty before the first turn, when all clients have the same segments.
        lost: the holder was started again without its segments, so that they are in the held vectors alone.
        pad: the number of the pads of the vectors that are held.
    """

    def __init__(self, clients: Sequence[str]) -> None:
        self.holder = ""
        self.lost = False
        self.pad = 0
        self._clients = clients
        self._sealed: dict[str, torch.Tensor] = {}
        # To whom their vector was sent, so that they have the newest segments too.
        self._sent: set[str] = set()

    def upload(self, name: str, round_number: int, rounds: int, vectors: Sequence[torch.Tensor], length: int) -> None:
        """Take the vectors of the client that has trained in a round.

        Raises:
            MessageError: there are other vectors than those that are due.
        """
        names = receivers(self._clients, round_number, rounds)
        self._sealed = dict(zip(names, _checked(vectors, len(names), length), strict=True))
        self.holder, self.pad, self.lost = name, 2 * round_number, False
        self._sent = set()

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
        self.pad = 2 * round_number + 1

    def vectors_for(self, name: str) -> list[torch.Tensor]:
        """Return the vector that is held for a client, if there is one: it is sent to it now."""
        if name not in self._sealed:
            return []
        self._sent.add(name)
        return [self._sealed[name]]

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

    def check_kept(self, there: Collection[str]) -> None:
        """Raise `PartyTimeoutError` where nobody who is there can get the newest segments any more."""
        if not any(self.can_train(name, there) for name in there):
            raise PartyTimeoutError(
                f"the newest segments of this relay are with {self.holder}, which is gone: start it again with its "
                "checkpoints, or begin a new run"
            )


class RelayMember:
    """A client's half: whether its segments are the newest, and the pads.

    Args:
        used: which pads this client has used, also in an earlier welcome to the run.

    Attributes:
        stale: another client has newer segments, which have not come yet.
        owes: the clients that are to be sent the segments once more.
    """

    def __init__(self, name: str, clients: Sequence[str], used: OneTime | None = None) -> None:
        self.stale = False
        self.owes: tuple[str, ...] = ()
        self._name = name
        self._clients = clients
        self._used = OneTime() if used is None else used

    def seal(
        self, flat: torch.Tensor, names: Sequence[str], seeds: Mapping[str, bytes], *, round_number: int, again: bool
    ) -> list[torch.Tensor]:
        """Return the segments under a pad for each of `names`, int64.

        Args:
            flat: the segments, float64.
            seeds: by client, the seed that it shares with this one.
            again: whether the round's own vectors have been sent before, so that other pads are due.

        Raises:
            RandomnessError: a pad has been used before.
        """
        number = 2 * round_number + again
        for name in names:
            self._used.add(seeds[name], name, str(number), what=f"pad {number} of {self._name} for {name}")
        return [hand_over(flat, seed=seeds[name], sender=self._name, receiver=name, number=number) for name in names]

    def told(self, done: Combined, tensors: Sequence[torch.Tensor], rounds: int) -> None:
        """Note who has the newest segments after a round.

        Args:
            rounds: of the run.

        Raises:
            MessageError: the server wants this client's segments for one whose turn it is not.
        """
        following = self._clients if done.round + 1 >= rounds else (turn_of(self._clients, done.round + 1),)
        if not set(done.owed) <= set(following):
            raise MessageError("the server asks for segments for a client whose turn it is not")
        self.stale = not tensors and (done.lost or done.holder not in ("", self._name))
        self.owes = done.owed if done.holder == self._name else ()

    def open(
        self, vector: torch.Tensor, sender: str, number: int, seeds: Mapping[str, bytes], length: int
    ) -> torch.Tensor:
        """Return the segments that another client has sealed for this one, float64 (length,).

        Raises:
            MessageError: the sender is no client of the run, or the vector has another length.
        """
        if sender not in seeds:
            raise MessageError(f"{sender} hands segments over and takes no part in this run")
        expect_tensor(vector, what="what was handed over", dtype=torch.int64, shape=(length,))
        self.stale = False
        return take_over(vector, seed=seeds[sender], sender=sender, receiver=self._name, number=number)


def _checked(vectors: Sequence[torch.Tensor], count: int, length: int | None) -> list[torch.Tensor]:
    if len(vectors) != count:
        raise MessageError(f"{count} vectors are due in a relay here, not {len(vectors)}")
    return [
        expect_tensor(vector, what="the segments handed over", dtype=torch.int64, shape=(length,)) for vector in vectors
    ]
