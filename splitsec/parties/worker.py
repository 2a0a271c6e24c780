"""One prediction session at the server, in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import torch
import zmq

from splitsec.errors import MessageError, RefusedError, SplitsecError
from splitsec.mpc.context import SERVER
from splitsec.mpc.costing import predict_cost
from splitsec.mpc.linear import laid_out
from splitsec.mpc.messages import (
    Await,
    Close,
    LeaveSession,
    MaskedWeights,
    Ping,
    Prepare,
    Ready,
    Run,
    SessionBody,
    session_codec,
)
from splitsec.mpc.plan import weight_masks, weight_shapes
from splitsec.mpc.program import Program, Weights
from splitsec.mpc.run import run_program
from splitsec.mpc.session import Session
from splitsec.mpc.shared import session_weights, shared_weights
from splitsec.mpc.supply import Supply, most_ahead
from splitsec.parties import names
from splitsec.parties.contributing import Gathered
from splitsec.parties.fetching import corrections, join_session, weight_shares
from splitsec.parties.machine import settle
from splitsec.training.messages import ContributionBody, DealerBody, Share, contribution_codec, dealer_codec
from splitsec.transport import Hub, KeyPair, Link, Message, Peer, Wire

log = logging.getLogger(__name__)
IDLE_SECONDS = 600.0
LEAVE_SECONDS = 10.0


class Job(Message, frozen=True):
    """What a worker needs for one session; with weight and bias of each of `layers` as tensors.

    Where clients' activations are joined, `shares` says whose features are where, and `contributors` are the others'
    names and keys. `processors` are all that the server may use, `processor` the one that the worker keeps to, if any.
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
    threads: int
    processors: tuple[int, ...]
    processor: int | None
    join: str = ""
    shares: tuple[Share, ...] = ()
    contributors: tuple[tuple[str, bytes], ...] = ()

    def __repr__(self) -> str:
        return f"Job(session={self.session[:8]}, client={self.client})"


def serve_session(
    job: Job, tensors: Sequence[torch.Tensor], bound: Callable[[int, int], None], stop: threading.Event
) -> None:
    """Answer one client's queries until it closes the session, falls silent, or `stop` is set.

    Args:
        bound: called with the ports of the session's socket and of that for contributions (0 if there is none) once
            they listen.

    Raises:
        AddressError: the socket cannot be bound.
    """
    settle(job.threads)
    weights = {
        layer: Weights(laid_out(weight), bias)
        for layer, weight, bias in zip(job.layers, tensors[::2], tensors[1::2], strict=True)
    }
    keys = KeyPair(names.SERVER, job.public_key, job.secret_key)
    # The dealer's messages are large and come while a query runs: they have a wire, and so a thread, of their own. A
    # thread keeps to the processors of the one that makes it, so the order counts.
    if job.processors:
        os.sched_setaffinity(0, job.processors)
    with Wire(keys) as supplied, contextlib.ExitStack() as stack:
        dealer: Link[DealerBody] = Link(
            supplied, job.dealer, peer=names.DEALER, peer_key=job.dealer_key, codec=dealer_codec, timeout=job.timeout
        )
        stack.callback(dealer.close)
        if job.processor is not None:
            os.sched_setaffinity(0, {job.processor})
        wire = stack.enter_context(Wire(keys))
        wire.admit(job.session, {job.client: job.client_key})
        socket, address = wire.bind(zmq.DEALER, f"tcp://{job.host}:*", job.session)
        peer: Peer[SessionBody] = Peer(socket, peer=job.client, codec=session_codec, timeout=job.timeout)
        stack.callback(peer.close)
        gathered, contributions = None, 0
        if job.shares:
            hub: Hub[ContributionBody] = Hub(wire, f"tcp://{job.host}:*", dict(job.contributors), contribution_codec)
            stack.callback(hub.close)
            gathered = Gathered(hub, job.shares, job.client, job.join, job.program.input_shape[0])
            contributions = urlsplit(hub.address).port or 0
        bound(urlsplit(address).port or 0, contributions)
        began, worker = time.monotonic(), _Worker(job, peer, dealer, weights, stop, gathered)
        log.info("session %s of %s is open", job.session[:8], job.client)
        try:
            worker.run()
        except SplitsecError as error:
            log.warning("session %s of %s ended: %s", job.session[:8], job.client, error)
            peer.refuse(error)
        except Exception as error:
            trace = log.isEnabledFor(logging.DEBUG)
            log.error("session %s of %s failed: %r", job.session[:8], job.client, error, exc_info=trace)
            peer.refuse(RefusedError("the server failed; see its log"))
        finally:
            log.info(
                "session %s of %s is over: %d queries in %.1f s",
                job.session[:8],
                job.client,
                worker.queries,
                time.monotonic() - began,
            )
            with contextlib.suppress(SplitsecError, zmq.ZMQError):
                dealer.request(LeaveSession(job.session), timeout=LEAVE_SECONDS / 2)


class _Worker:
    def __init__(
        self,
        job: Job,
        peer: Peer[SessionBody],
        dealer: Link[DealerBody],
        weights: Mapping[int, Weights],
        stop: threading.Event,
        gathered: Gathered | None,
    ) -> None:
        self._job = job
        self._gathered = gathered
        self._peer = peer
        self._dealer = dealer
        self._weights = weights
        self._stop = stop
        self.queries = 0

    def run(self) -> None:
        job = self._job
        plan = predict_cost(job.program, SERVER).plan
        seed = join_session(self._dealer, job.session, SERVER, job.client, plan)
        items = shared_weights(job.program)
        shared = {item.number: self._weights[item.number] for item in items}
        session = Session(
            self._peer,
            rank=SERVER,
            dealt_seed=seed,
            pair_seed=job.pair_seed,
            plan=plan,
            corrections=lambda query: corrections(self._dealer, job.session, plan, query, rank=SERVER),
            masked_weights={number: held.weight for number, held in shared.items()},
            precision=job.program.precision,
            comparison=job.program.comparison,
        )
        masks = weight_masks(plan, seed)
        masked = {layer: self._weights[layer].weight - mask for layer, mask in masks.items()}
        ahead = most_ahead(plan, SERVER)
        masked |= {layer: shared[layer].weight for layer in weight_shapes(plan) if layer in shared}
        sent = {layer: masked[layer] for layer in weight_shapes(plan)}
        self._peer.send(MaskedWeights(tuple(sent), ahead), list(sent.values()))
        if items:
            # The client has joined by now: it asks for its first query when it has the masked weights.
            self._peer.poll(self._job.timeout)
            shares = weight_shares(self._dealer, job.session, items)
            self._weights = {**self._weights, **session_weights(SERVER, items, shared, shares)}
        supply = Supply(session, processors=job.processors)
        try:
            self._answer(session, supply, ahead)
        finally:
            # Before the dealer's link is used again: until then it is the supply's.
            supply.close()

    def _answer(self, session: Session, supply: Supply, ahead: int) -> None:
        peer, patience = self._peer, self._job.timeout
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
                    peer.send(Ready(query, supply.wait(query, timeout=self._job.timeout)))
                case Run():
                    self._run_query(session, supply)
                case Ping():
                    peer.send(Ping())
                case Close():
                    return
                case other:
                    raise MessageError(f"{type(other).__name__} was not due")

    def _wait(self, patience: float) -> None:
        # A client that was just told that its query is ready asks at once, so begin with the short and quick wait.
        deadline = time.monotonic() + patience
        readable = self._peer.poll(0)
        while not readable:
            if self._stop.is_set():
                raise RefusedError("the server is stopping")
            if time.monotonic() > deadline:
                raise RefusedError(f"{self._peer.peer} asked nothing for {patience:g} s; its session is closed")
            readable = self._peer.poll(0.25)

    def _run_query(self, session: Session, supply: Supply) -> None:
        query = session.next_run
        supply.wait(query, timeout=self._job.timeout)
        share = None
        if self._gathered is not None:
            share = self._gathered.share(query, timeout=self._job.timeout / 2, stopped=self._stop.is_set)
        session.begin(query)
        run_program(self._job.program, session, activation=share, weights=self._weights)
        session.end()
        self.queries += 1
