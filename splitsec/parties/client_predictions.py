"""Encrypted predictions at a client: sessions with the server's workers, and queries in them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from splitsec.cut import vocabulary
from splitsec.errors import ConfigError, MessageError, RangeError, RefusedError, RestartedError
from splitsec.events import Allowed, Predicted
from splitsec.mpc.context import CLIENT, Arithmetic
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.program.execute import Encoded
from splitsec.mpc.program.operations.crypten import runs_through_crypten
from splitsec.mpc.program.program import Program
from splitsec.mpc.program.validate import check_program
from splitsec.mpc.protocols.shared_linear import client_shares, shared_weights
from splitsec.mpc.session.messages import Close
from splitsec.mpc.session.plan import correction_count, weight_shapes
from splitsec.mpc.session.prefetch import Supply, most_ahead
from splitsec.mpc.session.session import Session, SessionSeeds
from splitsec.parties.client_connection import ClientConnection
from splitsec.parties.client_segments import ClientSegments
from splitsec.parties.predictions import Predictions, labels_of
from splitsec.parties.setup import Runtime
from splitsec.party_names import SERVER
from splitsec.prediction.client.session import ClientSession, predicted_cost, receive_masked_weights, session_peer
from splitsec.prediction.corrections import corrections, join_session
from splitsec.prediction.joint_inputs import joined_shape
from splitsec.prediction.messages import Calibration, NeedsCalibration, OpenSession, SessionOpened
from splitsec.prediction.noise_inputs import noise_inputs
from splitsec.prediction.server.allowance import batches
from splitsec.settings.query import Query, check_query

log = logging.getLogger(__name__)
# Rows of noise on which a server measures ranges.
CALIBRATION_ROWS = 16
# How many sessions a prediction may take, where the dealer is started again in the middle.
SESSIONS = 4
# What a query's input is where others add to it: made from the session, this client's activation and the rows' places.
Shared = Callable[[ClientSession, torch.Tensor, range], Encoded]


class ClientPredictions:
    """Asks the server for encrypted predictions.

    Args:
        runtime: processors where randomness may be made ready while a query runs, and who hears of events.

    Attributes:
        inputs: shape and dtype of one input, once some have been seen; None before.
    """

    def __init__(self, segments: ClientSegments, connection: ClientConnection, runtime: Runtime) -> None:
        self._segments = segments
        self._connection = connection
        self._runtime = runtime
        self._name = connection.network.keys.name
        self.inputs: tuple[torch.Size, torch.dtype] | None = None

    def predict(self, images: torch.Tensor, query: Query, *, shared: Shared | None = None) -> Predictions:
        """Return encrypted predictions, see `Client.predict`.

        Args:
            shared: makes what is given of an activation to which others add theirs.
        """
        check_query(query)
        self._check_predictable(images, query, looked_up=shared is None)
        self.inputs = images.shape[1:], images.dtype
        queries = _Queries(self._segments, images, query.batch_size, shared)
        shape = self._segments.activation(images[:1].expand(query.batch_size, *images.shape[1:])).shape
        for attempt in range(SESSIONS):
            try:
                with self.session(shape, query) as session:
                    for predicted in queries.ask(session):
                        self._runtime.report(Predicted(self._name, predicted, len(images)))
                    cost = session.last_cost
                break
            except RestartedError:
                if attempt + 1 == SESSIONS:
                    raise
                log.warning("the dealer was started again; predictions go on in a new session")
                queries.forget_unanswered()
        outputs = torch.cat(queries.results)
        labels, logits = (outputs, None) if query.reveal == "label" else (labels_of(outputs), outputs)
        return Predictions(labels, logits, queries.online_ms, queries.offline_ms, *cost, session.bytes_offline)

    def _check_predictable(self, images: torch.Tensor, query: Query, *, looked_up: bool) -> None:
        """Raise an error for images that the front cannot take, or a query that a U cannot answer.

        Args:
            looked_up: whether the front takes the images as they are; columns were tried when rows were aligned.
        """
        if self._segments.head is not None and query.reveal == "label":
            raise ConfigError("the tail of a U ends before the labels: reveal its output, which the head takes")
        if looked_up and images.is_floating_point() == (vocabulary(self._segments.front) is not None):
            due = "whole numbers, since the front looks them up" if images.is_floating_point() else "real numbers"
            raise MessageError(f"the images are {images.dtype}; give {due}, as the model was trained")
        if len(images) < 1:
            raise MessageError("there is nothing to predict: give at least one image")

    @contextmanager
    def session(self, shape: Sequence[int], query: Query) -> Iterator[ClientSession]:
        """Open a prediction session for activations of `shape`, batch dimension first."""
        check_query(query)
        request = self._request(tuple(shape), query)
        opened = self._open(request)
        program = opened.program
        _check_opened(opened, tuple(shape), query)
        if opened.left is not None:
            self._runtime.report(Allowed(self._name, opened.left))
        connection = self._connection
        with contextlib.ExitStack() as stack:
            # First of all: the server waits for this, and not for long.
            address, timeout = connection.worker_address(opened.port), connection.network.timeouts.timeout
            key = connection.network.peers[SERVER]
            peer = stack.enter_context(session_peer(connection.wire, address, key, timeout=timeout))
            predicted = predicted_cost(program)
            plan = predicted.plan
            seed = join_session(connection.dealer, opened.session, CLIENT, self._name, plan)
            fetch = None
            if correction_count(plan, CLIENT):
                # Of its own, since the session's randomness is fetched in another thread.
                dealer = stack.enter_context(contextlib.closing(connection.dealer_link()))
                fetch = partial(corrections, dealer, opened.session, plan, rank=CLIENT)
            try:
                masked, most = receive_masked_weights(peer, weight_shapes(plan))
                session = Session(
                    peer,
                    rank=CLIENT,
                    seeds=SessionSeeds(seed, request.pair_seed),
                    plan=plan,
                    corrections=fetch,
                    masked_weights=masked,
                    arithmetic=Arithmetic(program.precision, program.comparison),
                )
                supply = Supply(session, processors=self._runtime.processors)
                try:
                    ahead = min(query.ahead, min(most, most_ahead(plan, CLIENT)) - 1)
                    yield ClientSession(
                        session,
                        supply,
                        opened,
                        predicted,
                        self._segments.cut,
                        ahead=ahead,
                        weights=client_shares(seed, shared_weights(program)),
                    )
                finally:
                    supply.close()
                peer.send(Close())
            except Exception:
                # Not the error's own words: they may hold the client's values.
                peer.refuse(RefusedError("the client gave up"))
                raise

    def _request(self, shape: tuple[int, ...], query: Query) -> OpenSession:
        """Return what this client asks for, with a fresh seed and where its front comes from."""
        origin = self._segments.origin()
        return OpenSession(
            shape,
            fresh_seed(),
            query.reveal,
            query.checked,
            query.comparison,
            query.engine,
            origin.mark,
            origin.run,
            origin.rounds,
        )

    def _open(self, request: OpenSession) -> SessionOpened:
        """Ask the server for a session, and send it activations of noise where it has nothing to measure ranges on."""
        connection = self._connection
        connection.server.send(request)
        opened, _ = connection.answer()
        if isinstance(opened, NeedsCalibration):
            connection.server.send(Calibration(), {"activations": self._noise_activation(request)})
            connection.answer()
            connection.server.send(request)
            opened, _ = connection.answer()
        if not isinstance(opened, SessionOpened):
            raise MessageError(f"the server answered {type(opened).__name__} to OpenSession")
        return opened

    def _noise_activation(self, request: OpenSession) -> torch.Tensor:
        """Return what the front makes of noise with mean 0 and standard deviation 1, float32 (rows, ...).

        The noise is the same for all parties: its seed is the mark that front and tail share, so it says nothing of
        this client's data but their shape. What the front makes of it says something of the front, which the server of
        an averaged run knows.
        """
        if self.inputs is None:
            raise RangeError(
                "the tail's weights guarantee no ranges: predict images once, whose shape noise for a calibration "
                "needs, or give the server a calibration"
            )
        noise = noise_inputs(CALIBRATION_ROWS, *self.inputs, request.mark, words=vocabulary(self._segments.front))
        return self._segments.activation(noise).float()


def _check_opened(opened: SessionOpened, shape: tuple[int, ...], query: Query) -> None:
    """Raise `MessageError` where the server opened another session than was asked for."""
    program: Program = opened.program
    check_program(program)
    if program.input_shape != (joined_shape(opened.shares, shape[0]) if opened.shares else shape):
        raise MessageError("the server compiled its tail for another shape")
    # Where ranges were measured on noise they are checked, also unasked.
    checks = query.checked or (bool(program.checks) and not program.guaranteed)
    if (program.reveals_label, bool(program.checks), program.comparison) != (
        query.reveal == "label",
        checks,
        query.comparison,
    ):
        raise MessageError("the server's program does not reveal, check or compare as was asked for")
    if runs_through_crypten(program) != (query.engine == "crypten"):
        raise MessageError(f"the server's program does not run through the functions of {query.engine}")


class _Queries:
    """The queries of one prediction, of which those without an answer are asked again in another session.

    Attributes:
        results: the outputs of the queries that have been answered.
        online_ms, offline_ms: how long each took, and its randomness.
    """

    def __init__(self, segments: ClientSegments, images: torch.Tensor, batch_size: int, shared: Shared | None) -> None:
        self._segments = segments
        self._images = images
        self._batch_size = batch_size
        self._shared = shared
        self.results: list[torch.Tensor] = []
        self.online_ms: list[float] = []
        self.offline_ms: list[float] = []

    def ask(self, session: ClientSession) -> Iterator[int]:
        """Ask for what has no answer yet; give, now and then, how many images are answered."""
        size, total = self._batch_size, len(self._images)
        begun = len(self.results) * size
        session.check_left(batches(total - begun, size), size)
        for start in range(begun, total, size):
            rows = self._images[start : start + size]
            self.offline_ms.append(session.prepare())
            prepared = time.perf_counter()
            result = session.run(self._input(session, rows, start))
            self.online_ms.append((time.perf_counter() - prepared) * 1e3)
            self.results.append(self._segments.finish(result[: len(rows)]))
            if len(self.results) % 10 == 0 or start + size >= total:
                yield min(start + size, total)

    def _input(self, session: ClientSession, rows: torch.Tensor, start: int) -> torch.Tensor | Encoded:
        activation = self._segments.activation(rows)
        if len(rows) < self._batch_size:
            activation = torch.cat([activation, torch.zeros(self._batch_size - len(rows), *activation.shape[1:])])
        return (
            activation if self._shared is None else self._shared(session, activation, range(start, start + len(rows)))
        )

    def forget_unanswered(self) -> None:
        """Forget the times of a query that was not answered."""
        del self.offline_ms[len(self.results) :], self.online_ms[len(self.results) :]
