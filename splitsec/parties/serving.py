"""The server's side of encrypted prediction: compiled programs, and one thread a session."""

from __future__ import annotations

import contextlib
import copy
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import torch
import zmq
from torch import fx

from splitsec.errors import MessageError, PartyTimeoutError, RangeError, RefusedError, SplitsecError
from splitsec.mpc.compiler import compile_tail, encode_weights
from splitsec.mpc.context import SERVER as SERVER_RANK
from splitsec.mpc.costing import predict_cost
from splitsec.mpc.messages import (
    Close,
    Corrections,
    DealQuery,
    JoinSession,
    LeaveSession,
    MaskedWeights,
    Ping,
    Prepare,
    Ready,
    Run,
    SessionBody,
    SessionSeed,
    session_codec,
)
from splitsec.mpc.plan import weight_masks
from splitsec.mpc.prg import SEED_BYTES
from splitsec.mpc.program import Program, Weights
from splitsec.mpc.run import run_program
from splitsec.mpc.session import Session
from splitsec.parties.names import DEALER
from splitsec.training.messages import DealerBody, OpenSession, SessionOpened, dealer_codec
from splitsec.transport import Link, Peer, Wire

log = logging.getLogger(__name__)
IDLE_SECONDS = 600.0
LEAVE_SECONDS = 10.0


class PredictionService:
    """Opens prediction sessions for clients; each has its own socket, seeds and thread.

    Args:
        tail: the trained tail; a copy in eval mode is taken.
        host: the interface to listen on for sessions, such as `127.0.0.1`.
        limit: how many sessions may be open at once; a client may have half of them.
    """

    def __init__(
        self,
        tail: fx.GraphModule,
        *,
        wire: Wire,
        peers: Mapping[str, bytes],
        dealer_address: str,
        host: str,
        timeout: float,
        calibration: torch.Tensor | None = None,
        limit: int = 16,
    ) -> None:
        self._tail = copy.deepcopy(tail).eval()
        self._wire = wire
        self._peers = peers
        self._dealer_address = dealer_address
        self._host = host
        self._timeout = timeout
        self._limit = limit
        self._calibration = calibration
        self._compiled: dict[tuple[int, ...], tuple[Program, dict[int, Weights]]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._stopping = threading.Event()

    def open(self, client: str, wanted: OpenSession) -> SessionOpened:
        """Compile the tail for the client's shape, bind a socket for it alone and start its thread.

        Raises:
            UnsupportedLayerError, RangeError, MessageError: the tail cannot run encrypted on this shape.
            RefusedError: too many sessions are open.
        """
        if len(wanted.pair_seed) != SEED_BYTES:
            raise MessageError(f"a pair seed has {SEED_BYTES} bytes, not {len(wanted.pair_seed)}")
        if not wanted.shape or any(not 0 < size < 1 << 20 for size in wanted.shape):
            raise MessageError(f"an activation cannot have shape {wanted.shape}")
        self._threads = {name: thread for name, thread in self._threads.items() if thread.is_alive()}
        own = sum(thread.name.endswith(f" {client}") for thread in self._threads.values())
        if len(self._threads) >= self._limit or own >= self._limit // 2:
            raise RefusedError(f"{len(self._threads)} prediction sessions are open already; try again later")
        if wanted.shape not in self._compiled:
            self._compiled[wanted.shape] = self._compile(wanted.shape)
        program, weights = self._compiled[wanted.shape]
        session = secrets.token_hex(16)
        self._wire.admit(session, {client: self._peers[client]})
        socket, address = self._wire.bind(zmq.DEALER, f"tcp://{self._host}:*", session)
        peer: Peer[SessionBody] = Peer(socket, peer=client, codec=session_codec, timeout=self._timeout)
        thread = threading.Thread(
            target=self._run,
            args=(session, peer, program, weights, wanted.pair_seed),
            name=f"session {session[:8]} of {client}",
            daemon=True,
        )
        self._threads[session] = thread
        thread.start()
        port = urlsplit(address).port
        return SessionOpened(session=session, port=int(port or 0), program=program)

    def _compile(self, shape: tuple[int, ...]) -> tuple[Program, dict[int, Weights]]:
        try:
            program, weights = compile_tail(self._tail, shape, calibration=self._calibration)
        except RangeError as error:
            # The value is the server's; the client learns that there is one.
            log.warning("the tail cannot run encrypted: %s", error)
            raise RangeError(
                "the tail's weights are out of range for fixed point; the server's log names them"
            ) from None
        return program, encode_weights(program, weights)

    def close(self, patience: float) -> None:
        """Let running queries end, tell idle clients, and wait for all sessions, at most `patience` seconds."""
        self._stopping.set()
        deadline = time.monotonic() + patience
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def active(self) -> bool:
        """Whether a session is still running."""
        return any(thread.is_alive() for thread in self._threads.values())

    def _run(
        self,
        name: str,
        peer: Peer[SessionBody],
        program: Program,
        weights: Mapping[int, Weights],
        pair_seed: bytes,
    ) -> None:
        dealer: Link[DealerBody] = Link(
            self._wire,
            self._dealer_address,
            peer=DEALER,
            peer_key=self._peers[DEALER],
            codec=dealer_codec,
            timeout=self._timeout,
        )
        try:
            plan = predict_cost(program, SERVER_RANK).plan
            joined, _ = dealer.request(JoinSession(name, SERVER_RANK, peer.peer, plan))
            if not isinstance(joined, SessionSeed):
                raise MessageError(f"the dealer answered {type(joined).__name__} to a request for a seed")

            def corrections(query: int) -> torch.Tensor:
                body, tensors = dealer.request(DealQuery(name, query), spin=True)
                if not isinstance(body, Corrections) or body.query != query or len(tensors) != 1:
                    raise MessageError("the dealer answered another request")
                return tensors[0]

            session = Session(
                peer,
                rank=SERVER_RANK,
                dealt_seed=joined.seed,
                pair_seed=pair_seed,
                plan=plan,
                corrections=corrections,
                precision=program.precision,
            )
            masks = weight_masks(plan, joined.seed)
            peer.send(MaskedWeights(tuple(masks)), [weights[layer].weight - mask for layer, mask in masks.items()])
            self._answer(peer, session, program, weights)
        except PartyTimeoutError as error:
            log.warning("session %s ended: %s", name[:8], error)
        except SplitsecError as error:
            log.warning("session %s of %s ended: %s", name[:8], peer.peer, error)
            peer.refuse(error)
        except Exception as error:
            log.error(
                "session %s of %s failed: %r", name[:8], peer.peer, error, exc_info=log.isEnabledFor(logging.DEBUG)
            )
            peer.refuse(RefusedError("the server failed; see its log"))
        finally:
            with contextlib.suppress(SplitsecError, zmq.ZMQError):
                dealer.request(LeaveSession(name), timeout=LEAVE_SECONDS / 2)
            dealer.close()
            peer.close()
            self._wire.gate.close(name)

    def _answer(
        self, peer: Peer[SessionBody], session: Session, program: Program, weights: Mapping[int, Weights]
    ) -> None:
        patience = self._timeout
        while True:
            self._wait(peer, patience)
            patience = IDLE_SECONDS
            if peer.next_is_raw():
                self._run_query(session, program, weights)
                continue
            body, _ = peer.receive()
            match body:
                case Prepare(query):
                    if session.prepare() != query:
                        raise MessageError(f"query {query} is out of order")
                    peer.send(Ready(query))
                case Run():
                    self._run_query(session, program, weights)
                case Ping():
                    peer.send(Ping())
                case Close():
                    return
                case other:
                    raise MessageError(f"{type(other).__name__} was not due")

    def _wait(self, peer: Peer[SessionBody], patience: float) -> None:
        # A client that was just told that its query is ready asks at once, so begin with the short and quick wait.
        deadline = time.monotonic() + patience
        readable = peer.poll(0)
        while not readable:
            if self._stopping.is_set():
                raise RefusedError("the server is stopping")
            if time.monotonic() > deadline:
                raise PartyTimeoutError(f"{peer.peer} asked nothing for {patience:g} s; its session is closed")
            readable = peer.poll(0.25)

    @staticmethod
    def _run_query(session: Session, program: Program, weights: Mapping[int, Weights]) -> None:
        session.begin(session.next_ready)
        run_program(program, session, weights=weights)
        session.end()
