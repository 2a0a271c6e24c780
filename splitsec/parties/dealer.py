"""The dealer: hands out correlated randomness and sums of masks, and sees no data.

One thread talks to the parties; correlations are computed in others, so that sessions do not wait for each other, and
sent part by part while the rest is computed, see `flow`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import torch

from splitsec.errors import RandomnessError, RestartedError, SplitsecError, first_line
from splitsec.events import Listening, Report, ignore
from splitsec.files import whole_file
from splitsec.mpc.dealer import DealerBook, OwnerBook
from splitsec.mpc.session.messages import (
    Corrections,
    DealQuery,
    Done,
    JoinSession,
    LeaveSession,
    More,
    SessionSeed,
    ShareWeights,
    WeightShares,
)
from splitsec.parties.messages import dealer_codec
from splitsec.parties.setup import Network, Storage
from splitsec.party_names import DEALER, SERVER
from splitsec.prediction.flow import Flow
from splitsec.prediction.messages import OwnerSeed, OwnWeights
from splitsec.training.aggregation.dealer import MaskBook, check_sender
from splitsec.training.messages import BeginRun, JoinRun, OpenMasks
from splitsec.transport import NO_TENSORS, Hub, Incoming, Message, NamedTensors, Sender, Wire

log = logging.getLogger(__name__)
MAX_RUNS = 64
_RUN = re.compile(r"[0-9a-f]{32}\Z")
MOST_THREADS = 8
# Queries of so few elements are dealt by the hub's own thread: to wake another takes longer.
FEW_ELEMENTS = 1 << 18
RESUME_SECONDS = 0.05

_Handler: TypeAlias = Callable[[str, Any], tuple[Message, NamedTensors]]
_Reply: TypeAlias = tuple[Sender, Message | Exception, NamedTensors]


class Dealer:
    """A dealer that serves one server and its clients.

    Args:
        network: the dealer's keys, public keys of everyone who may ask (the server's name is `server`), and where to
            listen.
        minimum_clients: no sum over fewer clients than this is opened; at least 2.
        storage: where it notes which rounds it has opened for whom, for a run that is started again.
        report: called with every event.

    Raises:
        AddressError: the address cannot be bound.
        RandomnessError: `minimum_clients` is below 2.

    Example:
        >>> dealer = Dealer(Network(keys=keys, peers=peers, address="tcp://127.0.0.1:*"))  # doctest: +SKIP
        >>> dealer.serve()  # until `stop()` is called from another thread  # doctest: +SKIP
    """

    def __init__(
        self,
        network: Network,
        *,
        minimum_clients: int = 2,
        storage: Storage | None = None,
        report: Report = ignore,
    ) -> None:
        if minimum_clients < 2:
            raise RandomnessError("a sum over fewer than two clients would show what one sent: minimum_clients = 2")
        self._minimum = minimum_clients
        self._checkpoints = None if storage is None else storage.checkpoints
        if self._checkpoints is not None:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._report = report
        self._stop = threading.Event()
        self._owners = OwnerBook()
        self._sessions = DealerBook(self._owners)
        self._runs: dict[str, MaskBook] = {}
        self._handlers: dict[type[Message], _Handler] = {
            JoinSession: self._join_session,
            LeaveSession: self._leave_session,
            OwnWeights: self._own_weights,
            ShareWeights: self._share_weights,
            BeginRun: self._mask,
            JoinRun: self._mask,
            OpenMasks: self._mask,
        }
        # What the pool's threads have made.
        self._dealt: queue.SimpleQueue[_Reply] = queue.SimpleQueue()
        self._wire = Wire(network.keys, known=network.peers)
        try:
            allowed = {name: key for name, key in network.peers.items() if name != DEALER}
            self._hub: Hub[Message] = Hub(self._wire, network.address, allowed, dealer_codec)
        except BaseException:
            self._wire.close()
            raise
        self.address = self._hub.address

    def serve(self) -> None:
        """Answer until `stop`; a request that is refused never stops the dealer."""
        self._report(Listening(DEALER, self.address))
        incoming: Incoming[Message] | None = None
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="deal")
        flow = Flow(pool, self._made, self._hub.is_waiting)
        resumed = time.monotonic()
        try:
            while not self._stop.is_set():
                # Soon after one request there is often another, that of the next query; but who asks again and again
                # holds up the threads that compute.
                incoming = self._hub.receive(0.2, spin=incoming is not None and not flow.running)
                if incoming is not None:
                    self._take(incoming, flow)
                while not self._dealt.empty():
                    self._send(*self._dealt.get())
                if time.monotonic() - resumed > RESUME_SECONDS:
                    flow.resume(self._sessions.__contains__)
                    resumed = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            self._hub.close()
            self._wire.close()

    def stop(self) -> None:
        """Let `serve` return; safe from any thread or signal handler."""
        self._stop.set()

    def _take(self, incoming: Incoming[Message], flow: Flow) -> None:
        sender = incoming.sender
        try:
            match incoming.body:
                case DealQuery():
                    self._deal(sender, incoming.body, flow)
                case More(session, query, count):
                    flow.more(sender, session, query, count)
                case body:
                    self._send(sender, *self._answer(sender.name, body))
                    if isinstance(body, LeaveSession) and body.session not in self._sessions:
                        flow.forget(body.session)
        except Exception as error:
            self._send(sender, error)

    def _deal(self, sender: Sender, body: DealQuery, flow: Flow) -> None:
        """Send a query's corrections, or begin to: many are computed by other threads, part by part."""
        flow.check(sender, body.session)
        parts = self._sessions.corrections(body.session, name=sender.name, query=body.query)
        size = self._sessions.size(body.session, name=sender.name)
        if size > FEW_ELEMENTS or body.window < 8 * size:
            flow.begin(sender, body.session, body.query, parts, size=8 * size, window=body.window)
            return
        for part in parts:
            self._send(sender, Corrections(body.query), {"part": part})

    def _made(self, sender: Sender, query: int, part: torch.Tensor | Exception) -> None:
        """In a thread of the pool: leave a part of a query's corrections for the hub's thread."""
        reply: tuple[Message | Exception, NamedTensors] = (
            (part, NO_TENSORS) if isinstance(part, Exception) else (Corrections(query), {"part": part})
        )
        self._dealt.put((sender, *reply))
        self._hub.wake()

    def _send(self, to: Sender, body: Message | Exception, tensors: NamedTensors = NO_TENSORS) -> None:
        if isinstance(body, SplitsecError):
            self._hub.refuse(to, body)
        elif isinstance(body, Exception):
            log.error("a request of %s failed: %r", to.name, body, exc_info=log.isEnabledFor(logging.DEBUG) and body)
            self._hub.refuse(to, RandomnessError("the dealer could not handle the request"))
        else:
            self._hub.send(to, body, tensors)

    def _answer(self, name: str, body: Message) -> tuple[Message, NamedTensors]:
        handler = self._handlers.get(type(body))
        if handler is None:
            raise RandomnessError(f"the dealer does not answer {type(body).__name__}")
        return handler(name, body)

    def _join_session(self, name: str, body: JoinSession) -> tuple[Message, NamedTensors]:
        seed = self._sessions.join(
            body.session, rank=body.rank, name=name, server=SERVER, client=body.client, plan=body.plan
        )
        return SessionSeed(seed), NO_TENSORS

    def _leave_session(self, name: str, body: LeaveSession) -> tuple[Message, NamedTensors]:
        self._sessions.leave(body.session, name=name)
        return Done(), NO_TENSORS

    def _own_weights(self, name: str, _body: OwnWeights) -> tuple[Message, NamedTensors]:
        if name == SERVER:
            raise RandomnessError("the server owns no weights that others may not know")
        return OwnerSeed(*self._owners.new(name)), NO_TENSORS

    def _share_weights(self, name: str, body: ShareWeights) -> tuple[Message, NamedTensors]:
        return WeightShares(), {"shares": self._sessions.weight_shares(body.session, body.items, name=name)}

    def _mask(self, name: str, body: BeginRun | JoinRun | OpenMasks) -> tuple[Message, NamedTensors]:
        """Answer what a run asks: seeds of masks, and their sums."""
        check_sender(name, body)
        book = self._begun(body.run) if isinstance(body, BeginRun) else self._book(body.run)
        answer = book.answer(name, body)
        if not isinstance(body, JoinRun):
            self._keep(body.run, book)
        return answer

    def _book(self, run: str) -> MaskBook:
        """Return the book of a run that the server has begun: a name that somebody made up takes no place."""
        if run not in self._runs:
            raise RestartedError(
                f"the server has not begun run {run[:8]} at this dealer, or it was started again since; begin anew as "
                "well"
            )
        return self._runs[run]

    def _begun(self, run: str) -> MaskBook:
        """Return the book of a run that the server begins; the oldest makes room."""
        if not _RUN.match(run):
            raise RandomnessError("a run is named by 32 hexadecimal digits")
        if run not in self._runs:
            while len(self._runs) >= MAX_RUNS:
                self._runs.pop(next(iter(self._runs)))
            # Which clients' masks were opened in each round before this dealer was started.
            path = None if self._checkpoints is None else self._checkpoints / f"{run}.json"
            recorded = path is not None and path.exists()
            try:
                kept = json.loads(path.read_text()) if path is not None and recorded else {}
                opened = {int(number): [str(name) for name in names] for number, names in kept.items()}
            except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise RandomnessError(
                    f"the dealer's record {path} of the run's rounds cannot be read ({first_line(error)}); begin a new "
                    "run"
                ) from None
            self._runs[run] = MaskBook(self._minimum, opened, recorded)
        return self._runs[run]

    def _keep(self, run: str, book: MaskBook) -> None:
        # Names and numbers of rounds: seeds are never written.
        if self._checkpoints is not None:
            with whole_file(self._checkpoints / f"{run}.json") as partial:
                partial.write_text(json.dumps(book.opened))
