"""One prediction session at the server, in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import torch
import zmq

from splitsec import party_names as names
from splitsec.errors import AddressError, MessageError, PartyTimeoutError, RefusedError, SplitsecError
from splitsec.machine import settle
from splitsec.mpc.context import SERVER, Arithmetic
from splitsec.mpc.program.cost import predict_cost
from splitsec.mpc.program.execute import Encoded, run_program
from splitsec.mpc.program.program import Program, Weights
from splitsec.mpc.protocols.shared_linear import session_weights, shared_weights
from splitsec.mpc.session.messages import (
    Await,
    Close,
    LeaveSession,
    MaskedWeights,
    Ping,
    Prepare,
    Preparing,
    Ready,
    Run,
    SessionBody,
    session_codec,
)
from splitsec.mpc.session.plan import weight_masks, weight_shapes
from splitsec.mpc.session.prefetch import Supply, most_ahead
from splitsec.mpc.session.session import Session, SessionSeeds
from splitsec.prediction.corrections import corrections, join_session, weight_shares
from splitsec.prediction.joint_inputs import Gathered
from splitsec.prediction.messages import (
    ContributionBody,
    Share,
    contribution_codec,
    prediction_dealer_codec,
)
from splitsec.prediction.server.allowance import Meter, PredictionBook
from splitsec.prediction.server.session_end import Ending
from splitsec.transport import Hub, KeyPair, Link, Message, Peer, Presence, Wire
from splitsec.transport.peer import WATCH_SECONDS
from splitsec.transport.presence import CONNECT_SECONDS, EVENTS, GONE_SECONDS
from splitsec.transport.tensor_specs import Several, Tensors, TensorSpec

log = logging.getLogger(__name__)
IDLE_SECONDS = 600.0
LEAVE_SECONDS = 5.0
# A client that wants more sessions than its share loses one that has asked nothing for so long.
SPARE_SECONDS = 10.0
BoundT = TypeVar("BoundT")


class Job(Message, frozen=True):
    """Server to worker: what it needs for one session.

    `digests` names weight and bias of each of `layers`, in turn; the tensors of those that are in `sent` come with the
    job, and the forker may drop those of `forget`. Where clients' activations are joined, `shares` says where each
    client's features are, and `contributors` are the others' names and keys. `processors` are all that the server may
    use, `processor` the one that the worker keeps to, if any. `ports` are the first and the last that the session may
    listen on, None for any. With `counts`, the directory of its book, each query counts against the client's
    `predictions`.
    """

    session: str
    client: str
    client_key: bytes
    public_key: bytes
    secret_key: bytes
    dealer: str
    dealer_key: bytes
    host: str
    timeout: float
    pair_seed: bytes
    program: Program
    layers: tuple[int, ...]
    digests: tuple[str, ...]
    threads: int
    processors: tuple[int, ...]
    processor: int | None
    join: str = ""
    shares: tuple[Share, ...] = ()
    contributors: tuple[tuple[str, bytes], ...] = ()
    ports: tuple[int, int] | None = None
    counts: str = ""
    predictions: int = 0
    sent: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    tensors: ClassVar[Tensors] = Tensors(weights=Several(TensorSpec(torch.int64)))

    def __repr__(self) -> str:
        return f"Job(session={self.session[:8]}, client={self.client})"


class Spare(Message, frozen=True):
    """Worker to server: whether a newer session of the same client may take this one's place.

    It may if its client is not there, or has asked nothing for a while.
    """

    session: str
    spare: bool


class Closed(Message, frozen=True):
    """Worker to server: the session is over; how many queries and seconds it had; `orderly` if its client closed it."""

    session: str
    queries: int
    seconds: float
    reason: str
    orderly: bool


class Bound(Message, frozen=True):
    """Worker to server: the session's socket listens on this port, that for contributions on the other (or 0)."""

    session: str
    port: int
    contributions: int


def serve_session(
    job: Job,
    weights: Mapping[int, Weights],
    tell: Callable[[Bound | Spare | Closed], None],
    ending: Ending,
) -> None:
    """Answer one client's queries until it closes the session, is gone or silent, or the worker is asked to end.

    Args:
        weights: by step number, in the ring.
        tell: sends a report to the server.

    Raises:
        AddressError: the socket cannot be bound.
    """
    settle(job.threads)
    keys = KeyPair(names.SERVER, job.public_key, job.secret_key)
    # The dealer's messages are large and come while a query runs: they have a wire, and so a thread, of their own. A
    # thread keeps to the processors of the one that makes it, so the order counts.
    if job.processors:
        os.sched_setaffinity(0, job.processors)
    with Wire(keys) as supplied, contextlib.ExitStack() as stack:
        dealer: Link[Any] = Link(
            supplied,
            job.dealer,
            peer=names.DEALER,
            peer_key=job.dealer_key,
            codec=prediction_dealer_codec,
            timeout=job.timeout,
        )
        stack.callback(dealer.close)
        if job.processor is not None:
            os.sched_setaffinity(0, {job.processor})
        wire = stack.enter_context(Wire(keys))
        wire.admit(job.session, {job.client: job.client_key})
        socket, address = bind_within(
            job.ports, lambda port: wire.bind(zmq.DEALER, f"tcp://{job.host}:{port}", job.session, events=EVENTS)
        )
        gathered, contributions = None, 0
        if job.shares:
            hub: Hub[ContributionBody] = bind_within(
                job.ports,
                lambda port: Hub(wire, f"tcp://{job.host}:{port}", dict(job.contributors), contribution_codec),
            )
            stack.callback(hub.close)
            gathered = Gathered(hub, job.shares, job.client, job.join, job.program.input_shape[0])
            contributions = urlsplit(hub.address).port or 0
        worker = _Worker(job, socket, dealer, weights, ending, gathered, tell)
        stack.callback(worker.close_socket)
        tell(Bound(job.session, urlsplit(address).port or 0, contributions))
        began, reason, orderly = time.monotonic(), "its client closed it", False
        try:
            worker.run()
            orderly = True
        except SplitsecError as error:
            reason = str(error)
            worker.peer.refuse(error)
        except Exception as error:
            trace = log.isEnabledFor(logging.DEBUG)
            log.error("session %s of %s failed: %r", job.session[:8], job.client, error, exc_info=trace)
            reason = f"it failed: {type(error).__name__}"
            worker.peer.refuse(RefusedError("the server failed; see its log"))
        finally:
            ending.begin()
            with contextlib.suppress(SplitsecError, OSError):
                worker.meter.close()
            tell(Closed(job.session, worker.queries, time.monotonic() - began, reason, orderly))
            worker.close()
            with contextlib.suppress(SplitsecError, zmq.ZMQError):
                dealer.request(LeaveSession(job.session), timeout=LEAVE_SECONDS)


def bind_within(ports: tuple[int, int] | None, bind: Callable[[str], BoundT]) -> BoundT:
    """Return what `bind` returns for the first free port from the first to the last of `ports`, or for `*` without.

    Raises:
        AddressError: no port is free.
    """
    if ports is None:
        return bind("*")
    for port in range(ports[0], ports[1] + 1):
        with contextlib.suppress(AddressError):
            return bind(str(port))
    raise AddressError(
        f"the server has no free port for another session among {ports[0]}-{ports[1]}; try again when one has ended, "
        "or give it a wider range (session_ports)"
    )


class _Worker:
    def __init__(
        self,
        job: Job,
        socket: zmq.Socket[bytes],
        dealer: Link[Any],
        weights: Mapping[int, Weights],
        ending: Ending,
        gathered: Gathered | None,
        tell: Callable[[Bound | Spare | Closed], None],
    ) -> None:
        self._job = job
        self._gathered = gathered
        self._presence = Presence(socket)
        self._dealer = dealer
        self._weights = weights
        self._ending = ending
        self._tell = tell
        self._supply: Supply | None = None
        self._spare = False
        self.queries = 0
        book = PredictionBook(Path(job.counts), job.predictions) if job.counts else None
        self.meter = Meter(book, job.client, job.program.input_shape[0])
        self.peer: Peer[SessionBody] = Peer(
            socket, peer=job.client, codec=session_codec, timeout=job.timeout, watch=self._watch
        )

    def close_socket(self) -> None:
        """Close the session's socket."""
        self._presence.close()
        self.peer.close()

    def close(self) -> None:
        """Stop using the dealer's link in another thread."""
        if self._supply is not None:
            self._supply.close()

    def run(self) -> None:
        """Join the session, and answer until its client closes it; raises `SplitsecError` where it ends otherwise."""
        job = self._job
        plan = predict_cost(job.program, SERVER).plan
        seed = join_session(self._dealer, job.session, SERVER, job.client, plan)
        items = shared_weights(job.program)
        shared = {item.number: self._weights[item.number] for item in items}
        session = Session(
            self.peer,
            rank=SERVER,
            seeds=SessionSeeds(seed, job.pair_seed),
            plan=plan,
            corrections=lambda query: corrections(self._dealer, job.session, plan, query, rank=SERVER),
            masked_weights={number: layer.weight for number, layer in shared.items()},
            arithmetic=Arithmetic(job.program.precision, job.program.comparison),
        )
        masks = weight_masks(plan, seed)
        masked = {layer: self._weights[layer].weight - mask for layer, mask in masks.items()}
        ahead = most_ahead(plan, SERVER)
        masked |= {layer: shared[layer].weight for layer in weight_shapes(plan) if layer in shared}
        sent = {layer: masked[layer] for layer in weight_shapes(plan)}
        self.peer.send(MaskedWeights(tuple(sent), ahead), {"weights": list(sent.values())})
        if items:
            # The client has joined by now: it asks for its first query when it has the masked weights.
            self._wait(self._job.timeout)
            shares = weight_shares(self._dealer, job.session, items)
            self._weights = {**self._weights, **session_weights(SERVER, items, shared, shares)}
        # As large as the layers' weights, and needed no more.
        del masks, masked, sent
        self._supply = Supply(session, processors=job.processors)
        self._answer(session, self._supply, ahead)

    def _answer(self, session: Session, supply: Supply, ahead: int) -> None:
        peer, patience = self.peer, self._job.timeout
        while True:
            self._wait(patience)
            patience = IDLE_SECONDS
            if peer.next_is_raw():
                self._run_query(session, supply)
                continue
            body, _ = peer.receive()
            match body:
                case Prepare(below):
                    if below - session.next_run > ahead:
                        raise MessageError(f"at most {ahead} queries may be prepared ahead")
                    supply.want(below)
                case Await(query):
                    watch = self._telling(session, query)
                    peer.send(Ready(query, supply.wait(query, timeout=self._job.timeout, watch=watch)))
                case Run():
                    self._run_query(session, supply)
                case Ping():
                    peer.send(Ping())
                case Close():
                    return
                case other:
                    raise MessageError(f"{type(other).__name__} was not due")

    def _watch(self) -> None:
        """Raise `PartyTimeoutError` if the client is gone, or did not come."""
        absent, came = self._presence.absent(), self._presence.came
        if absent > (0 if came else SPARE_SECONDS):
            self._offer(spare=True)
        if came and absent > GONE_SECONDS:
            raise PartyTimeoutError(f"{self.peer.peer} is gone")
        if not came and absent > min(CONNECT_SECONDS, self._job.timeout):
            raise PartyTimeoutError(f"{self.peer.peer} opened it and did not come to it within {absent:.0f} s")

    def _telling(self, session: Session, query: int) -> Callable[[], None]:
        """Return a function that tells the client now and then that a query's randomness is coming in."""
        told, fetched = time.monotonic(), session.fetched

        def watch() -> None:
            nonlocal told, fetched
            self._watch_idle()
            if session.fetched != fetched and time.monotonic() - told > min(5.0, self._job.timeout / 4):
                told, fetched = time.monotonic(), session.fetched
                self.peer.send(Preparing(query))

        return watch

    def _watch_idle(self) -> None:
        self._ending.check()
        self._watch()

    def _wait(self, patience: float) -> None:
        # A client that was just told that its query is ready asks at once, so begin with the short and quick wait.
        began = time.monotonic()
        readable = self.peer.poll(0)
        while not readable:
            self._watch_idle()
            waited = time.monotonic() - began
            if waited > patience:
                raise PartyTimeoutError(f"{self.peer.peer} asked nothing for {patience:g} s; its session is closed")
            if waited > SPARE_SECONDS:
                self._offer(spare=True)
            readable = self.peer.poll(WATCH_SECONDS)
        self._offer(spare=False)

    def _offer(self, *, spare: bool) -> None:
        if spare != self._spare:
            self._spare = spare
            self._tell(Spare(self._job.session, spare))

    def _interrupted(self) -> bool:
        self._watch()
        return bool(self._ending.reason)

    def _run_query(self, session: Session, supply: Supply) -> None:
        query = session.next_run
        self.meter.count()
        supply.wait(query, timeout=self._job.timeout, watch=self._watch)
        share = None
        if self._gathered is not None:
            share = Encoded(self._gathered.share(query, timeout=self._job.timeout / 2, stopped=self._interrupted))
        session.begin(query)
        run_program(self._job.program, session, activation=share, weights=self._weights)
        session.end()
        self.queries += 1
