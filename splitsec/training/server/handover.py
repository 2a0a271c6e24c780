"""The segments of a relay at the server: handed from their holder to the clients that wait, sealed for each."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch

from splitsec.errors import MessageError, PartyTimeoutError
from splitsec.training.aggregation import ServerAggregation
from splitsec.training.messages import Combined, Handed
from splitsec.training.server.outbox import Outbox
from splitsec.training.server.state import RunState

log = logging.getLogger(__name__)


class Handover:
    """Sends clients the end of a round, and in a relay the segments that its holder was asked for.

    Under the other rules nothing is ever owed.

    Attributes:
        owed: the clients that wait for segments that their holder was asked for.
    """

    def __init__(self, rule: ServerAggregation, state: RunState, outbox: Outbox) -> None:
        self._rule = rule
        self._state = state
        self._outbox = outbox
        self.owed: tuple[str, ...] = ()

    def begin(self, there: Collection[str]) -> None:
        """Note who waits for segments after the round that ended last."""
        self.owed = self._rule.owed(self._state.running, self._state.rounds, there)

    def send_end(self, name: str, end: Combined) -> None:
        """Tell a client how a round ended."""
        self._outbox.send(name, *self._rule.end_for(name, end, self.owed))

    def send_last_end(self, name: str) -> None:
        """Tell a client that comes when the run is over how the last round ended.

        Raises:
            PartyTimeoutError: no party has the segments any more.
        """
        assert self._state.last_end is not None
        if not self._rule.serves(name) and name not in self.owed:
            raise self._lost_segments()
        self.send_end(name, self._state.last_end)

    def tell_unserved(self) -> None:
        """Tell those who wait at the end of a run for segments that no party can send them any more."""
        if self.owed and not self._rule.lost:
            return
        self.owed = ()
        for name in self._state.members:
            if not self._rule.serves(name):
                self._outbox.refuse(name, self._lost_segments())

    def hand_on(self, name: str, body: Handed, sealed: Sequence[torch.Tensor], now: float) -> None:
        """Pass on what the holder sends for those who were owed it; raises `MessageError` where none was due."""
        state = self._state
        if not self._rule.takes_turns or state.number is None:
            raise MessageError("Handed was not due")
        if not self.owed or body.pad != 2 * (state.number - 1) + 1:
            # The round for which it was asked has ended without it.
            log.info("%s hands segments on too late", name)
            return
        self._rule.hand_on(name, self.owed, state.number - 1, sealed)
        for owed in self.owed:
            if owed in state.members:
                self._outbox.send(owed, Handed(name, self._rule.pad), {"sealed": [self._rule.sealed_for(owed)]})
        self.owed = ()
        state.progress = now

    def warn_silent(self, limit: float) -> None:
        """Log that the holder keeps others waiting, which is not their fault."""
        if self.owed:
            log.warning("%s was to hand its segments on and sent nothing for %g s", self._rule.holder, limit)

    def _lost_segments(self) -> PartyTimeoutError:
        return PartyTimeoutError(
            f"the newest segments of this relay are with {self._rule.holder}, which is gone: begin a new run, with "
            "checkpoints"
        )
