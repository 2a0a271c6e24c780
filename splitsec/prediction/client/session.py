"""The client's side of a prediction session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch
import zmq

from splitsec.errors import AddressError, BudgetError, MessageError, PartyTimeoutError, RangeError, SplitsecError
from splitsec.mpc.context import CLIENT, SERVER
from splitsec.mpc.program.cost import Prediction, predict_cost
from splitsec.mpc.program.execute import Encoded, encode_activation, run_program
from splitsec.mpc.program.program import Program, Weights
from splitsec.mpc.protocols.linear import laid_out
from splitsec.mpc.session.messages import (
    Await,
    MaskedWeights,
    Ping,
    Prepare,
    Preparing,
    Ready,
    Run,
    SessionBody,
    session_codec,
)
from splitsec.mpc.session.plan import correction_count
from splitsec.mpc.session.prefetch import Supply
from splitsec.mpc.session.session import Session
from splitsec.party_names import SERVER as SERVER_NAME
from splitsec.prediction.messages import SessionOpened
from splitsec.transport import Peer, Presence, Wire, expect_shape
from splitsec.transport.presence import CONNECT_SECONDS, EVENTS, GONE_SECONDS


def predicted_cost(program: Program) -> Prediction:
    """Return what a server's program costs; raises `MessageError` for one that cannot run."""
    try:
        return predict_cost(program, CLIENT)
    except SplitsecError:
        raise
    except Exception as error:
        raise MessageError(f"the server sent a program that cannot run: {type(error).__name__}") from error


def receive_masked_weights(
    peer: Peer[SessionBody], shapes: Mapping[int, tuple[int, ...]]
) -> tuple[dict[int, torch.Tensor], int]:
    """Return the masked weights by layer, and how many queries the server prepares ahead at most."""
    body, tensors = peer.receive()
    if not isinstance(body, MaskedWeights) or body.layers != tuple(shapes) or len(tensors["weights"]) != len(shapes):
        raise MessageError(f"the server sent {type(body).__name__} where its masked weights were due")
    if body.ahead < 1:
        raise MessageError("the server prepares no queries")
    masked = {
        layer: laid_out(expect_shape(tensor, shape, what="a masked weight"))
        for (layer, shape), tensor in zip(shapes.items(), tensors["weights"], strict=True)
    }
    return masked, body.ahead


@contextmanager
def session_peer(wire: Wire, address: str, server_key: bytes, *, timeout: float) -> Iterator[Peer[SessionBody]]:
    """Connect to a session's socket at `address`; a wait for the server ends with an error soon after it is gone.

    Args:
        timeout: seconds that the server may be silent.

    Raises:
        PartyTimeoutError: the connection was lost, or the server fell silent.
        AddressError: the socket could not be reached.
    """
    socket = wire.connect(zmq.DEALER, address, server_key, events=EVENTS)
    presence = Presence(socket)
    limit = min(CONNECT_SECONDS, timeout)

    def watch() -> None:
        absent = presence.absent()
        if presence.came and absent > GONE_SECONDS:
            raise PartyTimeoutError(f"the connection to {SERVER_NAME} at {address} was lost in the middle of a session")
        if not presence.came and absent > limit:
            raise AddressError(
                f"{SERVER_NAME} opened a session on {address}, which could not be reached within {limit:g} s; let this "
                "port through, or choose at the server which ports sessions listen on (session_ports)"
            )

    peer: Peer[SessionBody] = Peer(
        socket, peer=SERVER_NAME, codec=session_codec, timeout=timeout, watch=watch, address=address
    )
    try:
        yield peer
    finally:
        presence.close()
        peer.close()


class ClientSession:
    """A prediction session at the client: `prepare` (offline), then `run` (online), once each a query.

    While a query runs, the randomness of the next `ahead` queries is made ready at both parties.

    Args:
        session: the protocols' session with the server.
        supply: makes randomness ready in the background.
        opened: the server's answer.
        predicted: what the program costs.
        cut: the name of the cut.
        weights: this client's shares of weights that no party knows, by step number.

    Attributes:
        name: of the session.
        shares: where activations of several clients are joined, whose features are where.
        left: where the server counts predictions, how many rows it would still answer when the session was opened.
    """

    def __init__(
        self,
        session: Session,
        supply: Supply,
        opened: SessionOpened,
        predicted: Prediction,
        cut: str,
        *,
        ahead: int,
        weights: Mapping[int, Weights] | None = None,
    ) -> None:
        self._session = session
        self._supply = supply
        self._peer = session.peer
        self._cut = cut
        self._ahead = ahead
        self._asked = 0
        self._prepared = -1
        self.program = opened.program
        self.name = opened.session
        self._weights = weights
        self.shares = opened.shares
        self.left = opened.left
        self.predicted = predicted
        self.bytes_offline = sum(correction_count(session.plan, rank) for rank in (SERVER, CLIENT)) * 8
        self.last_cost = (0, 0, 0)

    @property
    def next_query(self) -> int:
        """Return the number of the query that runs next."""
        return self._session.next_run

    def check_left(self, rows: int, batch_size: int) -> None:
        """Raise `BudgetError`, before anything is sent, if the server's allowance is less than these batches."""
        if self.left is not None and rows > self.left:
            raise BudgetError(
                f"{SERVER_NAME} answers {self.left:,} more predictions of this client, and these are {rows:,} in whole "
                f"batches of {batch_size}; ask for fewer (predictions = {self.left // batch_size * batch_size})"
            )

    def round_trip_ms(self, count: int = 200) -> float:
        """Return the median of the milliseconds that an empty message takes to the server and back."""
        times = []
        for _ in range(count):
            began = time.perf_counter()
            self._peer.send(Ping())
            self._peer.receive(spin=True)
            times.append((time.perf_counter() - began) * 1e3)
        return median(times)

    def prepare(self) -> float:
        """Wait until the next query's randomness is ready at both parties; return the slower one's milliseconds."""
        query = self._session.next_run
        if self._prepared == query:
            return 0.0
        self._ask(query + 1)
        self._peer.send(Await(query))
        spent = self._supply.wait(query, timeout=self._peer.timeout)
        answer, _ = self._peer.receive(spin=True)
        while answer == Preparing(query):
            answer, _ = self._peer.receive()
        if not isinstance(answer, Ready) or answer.query != query:
            raise MessageError(f"the server answered {type(answer).__name__} to Await")
        self._prepared = query
        return max(spent, answer.milliseconds)

    def run(self, activation: torch.Tensor | Encoded, *, on_step: Callable[[int], None] | None = None) -> torch.Tensor:
        """Return the tail's result for an activation: float32, or int64 labels, of the program's output shape.

        Args:
            activation: real numbers of any dtype, of the session's shape; or this party's share of it, `Encoded`.

        Raises:
            MessageError: the activation is of whole numbers, or of another shape; the session can go on.
            RangeError: the activation is out of range, or in checked mode a layer overflowed; the session can go on.
        """
        # Before the query begins: a value out of range must not use up this party's randomness and not the server's.
        if isinstance(activation, Encoded):
            what, shape = f"the share of the activation at cut '{self._cut}'", self.program.input_shape
            expect_shape(activation.elements, shape, what=what)
            encoded = activation
        else:
            encoded = encode_activation(self.program, activation, self._cut)
        self.prepare()
        query = self._session.next_run
        self._ask(query + 1 + self._ahead)
        before = self._peer.traffic.copy()
        if not self.predicted.total.bytes_sent:
            self._peer.send(Run())
        self._session.begin(query)
        try:
            result = run_program(
                self.program, self._session, activation=encoded, weights=self._weights, on_step=on_step
            )
        except RangeError:
            # The very last thing that a query does, so that both parties are ready for the next.
            self._session.end()
            raise
        self._session.end()
        cost = self._peer.traffic.since(before)
        self.last_cost = (cost.rounds, cost.bytes_sent, cost.bytes_received)
        assert result is not None
        return result

    def _ask(self, below: int) -> None:
        """Have the randomness of all queries below this number made ready, here and at the server."""
        if below > self._asked:
            self._asked = below
            self._peer.send(Prepare(below))
            self._supply.want(below)
