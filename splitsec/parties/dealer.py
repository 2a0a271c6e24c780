"""The dealer: hands out correlated randomness and sums of masks, and sees no data."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

import torch

from splitsec.errors import RandomnessError, SplitsecError
from splitsec.mpc.dealing import DealerBook
from splitsec.mpc.messages import Corrections, DealQuery, Done, JoinSession, LeaveSession, SessionSeed
from splitsec.parties.events import Listening, Report, ignore
from splitsec.parties.names import DEALER, SERVER
from splitsec.training.aggregation import MaskBook
from splitsec.training.messages import DealerBody, JoinRun, MaskSum, OpenMasks, RunSeed, dealer_codec
from splitsec.transport import Hub, Incoming, KeyPair, Wire

log = logging.getLogger(__name__)
MAX_RUNS = 64


class Dealer:
    """A dealer that serves one server and its clients.

    Args:
        keys: the dealer's key pair.
        peers: public keys of everyone who may ask, by name; the server's name is `server`.
        address: where to listen, such as `tcp://127.0.0.1:5556`; port `*` takes a free one.
        minimum: no sum over fewer clients than this is opened; at least 2.

    Raises:
        AddressError: the address cannot be bound.
        RandomnessError: `minimum` is below 2.

    Example:
        >>> dealer = Dealer(keys=keys, peers=peers, address="tcp://127.0.0.1:*")  # doctest: +SKIP
        >>> dealer.serve()  # until `stop()` is called from another thread  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        keys: KeyPair,
        peers: Mapping[str, bytes],
        address: str,
        minimum: int = 2,
        report: Report = ignore,
    ) -> None:
        MaskBook(minimum)
        self._minimum = minimum
        self._report = report
        self._stop = threading.Event()
        self._sessions = DealerBook()
        self._runs: dict[str, MaskBook] = {}
        self._wire = Wire(keys)
        try:
            allowed = {name: key for name, key in peers.items() if name != DEALER}
            self._hub: Hub[DealerBody] = Hub(self._wire, address, allowed, dealer_codec)
        except BaseException:
            self._wire.close()
            raise
        self.address = self._hub.address

    def serve(self) -> None:
        """Answer until `stop`; a request that is refused never stops the dealer."""
        self._report(Listening(DEALER, self.address))
        incoming: Incoming[DealerBody] | None = None
        try:
            while not self._stop.is_set():
                # Soon after one request there is often another: that of the next query.
                incoming = self._hub.receive(0.2, spin=incoming is not None)
                if incoming is None:
                    continue
                try:
                    body, tensors = self._answer(incoming)
                except SplitsecError as error:
                    self._hub.refuse(incoming.sender, error)
                except Exception as error:
                    log.error(
                        "a request of %s failed: %r",
                        incoming.sender.name,
                        error,
                        exc_info=log.isEnabledFor(logging.DEBUG),
                    )
                    self._hub.refuse(incoming.sender, RandomnessError("the dealer could not handle the request"))
                else:
                    self._hub.send(incoming.sender, body, tensors)
        finally:
            self._hub.close()
            self._wire.close()

    def stop(self) -> None:
        """Let `serve` return; safe from any thread or signal handler."""
        self._stop.set()

    def _answer(self, incoming: Incoming[DealerBody]) -> tuple[DealerBody, list[torch.Tensor]]:
        name = incoming.sender.name
        match incoming.body:
            case DealQuery(session, query):
                return Corrections(query), [self._sessions.corrections(session, name=name, query=query)]
            case JoinSession(session, rank, client, plan):
                seed = self._sessions.join(session, rank=rank, name=name, server=SERVER, client=client, plan=plan)
                return SessionSeed(seed), []
            case LeaveSession(session):
                self._sessions.leave(session, name=name)
                return Done(), []
            case JoinRun(run):
                if name == SERVER:
                    raise RandomnessError("the server gets no mask seed: it could open uploads")
                return RunSeed(self._book(run).seed_for(name)), []
            case OpenMasks(run, round_number, participants, length):
                if name != SERVER:
                    raise RandomnessError(f"{name} may not open masks; only the server may")
                total = self._book(run).open_sum(round_number, participants, length)
                return MaskSum(round_number), [total]
            case other:
                raise RandomnessError(f"the dealer does not answer {type(other).__name__}")

    def _book(self, run: str) -> MaskBook:
        if run not in self._runs:
            while len(self._runs) >= MAX_RUNS:
                self._runs.pop(next(iter(self._runs)))
            self._runs[run] = MaskBook(self._minimum)
        return self._runs[run]
