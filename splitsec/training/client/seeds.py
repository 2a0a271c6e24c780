"""A client's seeds of a run, as it asks the dealer for them: at the beginning, and where the dealer has lost them."""

from __future__ import annotations

from collections.abc import Sequence

from splitsec.errors import MessageError
from splitsec.mpc.prg import fresh_seed
from splitsec.party_names import DEALER
from splitsec.privacy.dp_updates import NoiseShares
from splitsec.training.aggregation import Seeds
from splitsec.training.messages import JoinRun, RunSeed
from splitsec.transport.outgoing import Outgoing


class ClientSeeds:
    """Asks for seeds and keeps them.

    Args:
        run: the id of the run.
        start: of its seeds, which the server names.
        partners: the clients with which this one shares a seed each.
        noise: what the dealer takes part in of this client's noise; None for nothing.

    Attributes:
        current: the seeds that are in use; empty before the dealer has answered.
        start: of the seeds that were asked for last.
    """

    def __init__(self, run: str, start: str, *, partners: Sequence[str], noise: NoiseShares | None) -> None:
        self._run = run
        self._partners = tuple(partners)
        self._noise = noise
        self._renewing = False
        self.start = start
        self.current = Seeds()

    def request(self, first_round: int) -> Outgoing:
        """Return the request for seeds from a round on."""
        body = JoinRun(self._run, self.start, first_round, self._noise, self._partners, fresh_seed())
        return Outgoing(DEALER, body)

    def renew(self, start: str, first_round: int) -> Outgoing:
        """Return the request for new seeds, of a dealer that has lost those in use."""
        self.start = start
        self._renewing = True
        return self.request(first_round)

    def take(self, body: RunSeed) -> Seeds | None:
        """Take the dealer's answer; return the seeds that it replaces, None where there were none.

        Raises:
            MessageError: the dealer gave other seeds than were asked for.
        """
        if len(body.pairs) != len(self._partners):
            raise MessageError("the dealer gave other seeds than were asked for")
        before, self.current = self.current, Seeds(body.seed, dict(zip(self._partners, body.pairs, strict=True)))
        # Also where the dealer was started again before this client had its first seed.
        renewing, self._renewing = self._renewing and bool(before.own), False
        return before if renewing else None

    def shared_with(self, other: str) -> bytes:
        """Return what this client and another share, and no other party; raises `MessageError` for a stranger."""
        if other not in self.current.pairs:
            raise MessageError(f"{other} takes no part in this run")
        return self.current.pairs[other]
