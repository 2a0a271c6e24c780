"""A run's seeds at the dealer, as the server sees them: begun, opened as a sum of masks, lost and renewed."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from splitsec.errors import MessageError, RandomnessError, RestartedError, SplitsecError
from splitsec.training.messages import BeginRun, MaskSum, NewSeeds, Opened, OpenMasks, Unseeded
from splitsec.training.server.outbox import Outbox, RunFailed
from splitsec.training.server.state import RunParts, RunState
from splitsec.transport import Message, NamedTensors, expect_shape

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SumRequest:
    """A request for the sum of masks that ends a round.

    Attributes:
        round: the number of the round.
        names: the clients whose masks are in it.
        length: of a mask, in values.
        opened: called with the sum, int64 (length,), and the time.
        unseeded: called with the clients that the dealer knows no seed of, and the time, in its place.
    """

    round: int
    names: tuple[str, ...]
    length: int
    opened: Callable[[torch.Tensor, float], None]
    unseeded: Callable[[Sequence[str], float], None]

    def answered(self, body: Message, tensors: NamedTensors, now: float) -> None:
        """Go on with the dealer's answer; raises `RunFailed` where it is none to this request."""
        if isinstance(body, Unseeded) and body.round == self.round and set(body.clients) & set(self.names):
            self.unseeded([name for name in self.names if name in body.clients], now)
            return
        if not isinstance(body, MaskSum) or body.round != self.round:
            raise RunFailed(MessageError("the dealer answered another request"))
        try:
            self.opened(expect_shape(tensors["mask_sum"], (self.length,), what="the sum of masks"), now)
        except SplitsecError as error:
            raise RunFailed(error) from error


class RunSeeds:
    """Asks the dealer to begin the run and to open sums of masks, and begins anew where the dealer lost its seeds."""

    def __init__(self, parts: RunParts, state: RunState, outbox: Outbox) -> None:
        self._parts = parts
        self._state = state
        self._outbox = outbox
        # The clients whose sums were opened in the last rounds.
        self._opened: dict[int, tuple[str, ...]] = {}

    def begin(self, then: Callable[[float], None]) -> None:
        """Tell the dealer of the run, and go on with `then` when it knows."""
        body = BeginRun(self._state.id, self._state.start, fresh=not self._parts.kept.saved)
        self._outbox.ask_dealer(body, lambda _body, _tensors, now: then(now))

    def replace(self) -> None:
        """Have new seeds from now on."""
        self._state.start = secrets.token_hex(16)

    def open_sum(self, request: SumRequest) -> None:
        """Ask the dealer for the sum of masks of the round that is running."""
        state = self._state
        question = OpenMasks(state.id, state.start, request.round, request.names, request.length)
        self._outbox.ask_dealer(question, request.answered, self._renew_if_restarted)

    def note_opened(self, names: Sequence[str]) -> None:
        """Note whose sum ends the round that is running: the dealer opens it for these alone."""
        # Earlier ones cannot be repeated: a run goes on from one of the last two rounds.
        number = self._state.running
        self._opened = {earlier: who for earlier, who in self._opened.items() if earlier >= number - 1}
        self._opened[number] = tuple(names)

    def check_lost(self, name: str) -> None:
        """Renew the seeds where the dealer does not know this start of the run, whatever a client says."""
        state = self._state
        if state.number is None or name not in state.members:
            raise MessageError("SeedsLost was not due")

        def failed(error: SplitsecError, now: float) -> None:
            if isinstance(error, RandomnessError) and not isinstance(error, RestartedError):
                refusal = MessageError(f"{name} says that the dealer has lost the run's seeds, and it has not")
                log.warning("refused a message of %s: %s", name, refusal)
                self._outbox.refuse(name, refusal)
                return
            self._renew_if_restarted(error, now)

        # It opens nothing, since no sum is over no client.
        question = OpenMasks(state.id, state.start, state.number, (), 0)
        self._outbox.ask_dealer(question, lambda _body, _tensors, _now: self._renew(), failed)

    def _renew_if_restarted(self, error: SplitsecError, _now: float) -> None:
        if not isinstance(error, RestartedError):
            raise RunFailed(error) from error
        self._renew()

    def _renew(self) -> None:
        """Begin the run anew at a dealer that was started again, in the round that is running.

        What has been uploaded is uploaded once more under masks that the dealer knows. It opens a round for the same
        clients only, by the server's record, so that no client's part can be told from two sums.
        """
        state, number = self._state, self._state.running
        self.replace()
        log.warning("the dealer was started again; the run goes on in round %d with new seeds", number + 1)
        # Whether the round from which a run goes on had been opened before, its earlier start alone knew.
        complete = not self._parts.kept.saved or number > state.first_round
        opened = tuple(Opened(earlier, clients) for earlier, clients in sorted(self._opened.items()))

        def begun(_body: Message, _tensors: NamedTensors, now: float) -> None:
            self._parts.rule.renew()
            state.round.forget_uploads()
            for name in state.present:
                self._outbox.send(name, NewSeeds(state.start, number if name in state.round.active else number + 1))
            state.progress = now

        begin = BeginRun(state.id, state.start, fresh=False, opened=opened if complete else None)
        self._outbox.ask_dealer(begin, begun)
