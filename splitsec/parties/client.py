"""The client: owns its data and the front, trains with the server, and asks for encrypted predictions."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import torch
from torch import nn

from splitsec.cut import Origin, check_batch, is_u, origin_of, vocabulary
from splitsec.cut.belonging import check_unchanged
from splitsec.cut.segment_files import save_segment
from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.errors import (
    ConfigError,
    MessageError,
    PartyTimeoutError,
    RangeError,
    RefusedError,
    RestartedError,
    SplitsecError,
)
from splitsec.events import Allowed, Predicted, with_traffic
from splitsec.mpc.context import CLIENT
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.program.execute import Encoded
from splitsec.mpc.program.validate import check_program
from splitsec.mpc.protocols.shared_linear import client_shares, shared_weights
from splitsec.mpc.session.messages import Close
from splitsec.mpc.session.plan import correction_count, weight_shapes
from splitsec.mpc.session.prefetch import Supply, most_ahead
from splitsec.mpc.session.session import Session
from splitsec.parties.messages import Leave, dealer_codec, server_codec
from splitsec.parties.predictions import Predictions, labels_of
from splitsec.parties.setup import Network, Runtime, Storage
from splitsec.party_names import DEALER, SERVER
from splitsec.prediction.client.session import ClientSession, predicted_cost, receive_masked_weights, session_peer
from splitsec.prediction.corrections import corrections, join_session
from splitsec.prediction.joint_inputs import joined_shape
from splitsec.prediction.messages import Calibration, NeedsCalibration, OpenSession, SessionOpened
from splitsec.prediction.noise_inputs import noise_inputs
from splitsec.prediction.server.allowance import batches
from splitsec.settings.query import Query
from splitsec.settings.run import RunSettings
from splitsec.settings.setting import check_bounds
from splitsec.training.checkpoints import Checkpoints, MemoryCheckpoints
from splitsec.training.client.greeting import TRAINS, Purpose
from splitsec.training.client.run import ClientRun, Participation
from splitsec.training.messages import Combined, GaveUp, GreetAgain, Missed, Waiting
from splitsec.transport import TRAINING_SPIN_SECONDS, Link, Message, NamedTensors, ReconnectedError, Wire
from splitsec.transport.outgoing import Outgoing

log = logging.getLogger(__name__)
# Rows of noise on which a server measures ranges.
CALIBRATION_ROWS = 16
# How many sessions a prediction may take, where the dealer is started again in the middle.
SESSIONS = 4


class Client:
    """One client. Close it, or use it as a context manager.

    Args:
        front: the client's segment, `SplitModel(...).front`; it is trained in place.
        head: its other segment, `SplitModel(...).head`, if the cut is a U.
        cut: the name of the cut.
        network: keys of this client (its name is the client's), the server and the dealer; their addresses; timeouts.
        runtime: processors where randomness may be made ready while a query runs, and who hears of events.

    Example:
        >>> with Client(split.front, cut=split.cut, network=Network(keys=keys, peers=peers, ...)) as client:
        ...     client.train(part)
        ...     print(client.predict(part.test_images).labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        front: nn.Module,
        *,
        cut: str,
        head: nn.Module | None = None,
        network: Network,
        runtime: Runtime | None = None,
    ) -> None:
        network.check_peers(SERVER, DEALER)
        if is_u(cut) != (head is not None):
            raise ConfigError(f"the cut '{cut}' {'needs a head' if head is None else 'has no head'}; see SplitModel")
        self.front = front
        self.head = head
        self.name = network.keys.name
        self._cut = cut
        self._network = network
        self._runtime = runtime or Runtime()
        self._report = self._runtime.report
        self._run: ClientRun | None = None
        # Shape and dtype of one input, once some have been seen.
        self._inputs: tuple[torch.Size, torch.dtype] | None = None
        self._wire = Wire(network.keys)
        try:
            self._server: Link[Message] = Link(
                self._wire,
                network.server,
                peer=SERVER,
                peer_key=network.peers[SERVER],
                codec=server_codec,
                timeout=network.timeouts.timeout,
                others=network.peers,
            )
            self._dealer = self._dealer_link()
        except BaseException:
            self._wire.close()
            raise

    def train(
        self,
        part: Part | Columns,
        *,
        seed: int | None = None,
        repeatable: bool = False,
        storage: Storage | None = None,
    ) -> RunSettings:
        """Take part in the server's run with this client's data; `front` holds the combined segment afterwards.

        Args:
            part: this client's rows; or its columns, where the server joins activations of the same people.
            seed: goes into the order of the batches, dropout and the like, beside a fresh secret of this run.
            repeatable: leave the secret out, so that a run with the same seeds repeats bit for bit, for tests and
                demonstrations: **whoever sees two such runs, with this client and without it, has its update**.
            storage: where checkpoints and ledgers are kept, and what all runs may spend of a record.

        Raises:
            ConfigError: the checkpoints are of another run.
            BudgetError: the run's privacy budget is spent, or the run would exceed `storage.epsilon_limit`.
            PartyTimeoutError, AuthenticationError, RefusedError: the server or the dealer does not play along.
            RangeError: an activation or a parameter is not finite or out of range.
        """
        if not isinstance(part, Columns):
            self._inputs = part.train_images.shape[1:], part.train_images.dtype
        segments = [self.front] if self.head is None else [self.front, self.head]
        begun = [{key: value.clone() for key, value in one.state_dict().items()} for one in segments]
        # In memory, so that a server that is started again need not find this client started again as well.
        storage = storage or Storage()
        kept = MemoryCheckpoints() if storage.checkpoints is None else Checkpoints(storage.checkpoints)
        participation = Participation(self.name, self._cut, seed, repeatable, storage.epsilon_limit, self._purpose)
        make = partial(
            ClientRun,
            segments,
            part,
            participation,
            checkpoints=kept,
            ledgers=storage.checkpoints if storage.ledgers is None else storage.ledgers,
            report=with_traffic(self._report, self._bytes),
        )
        while True:
            run = self._run = make()
            try:
                self._learn(run)
            except ReconnectedError:
                # Whatever was on its way is lost, so begin as a client does that was started again.
                log.warning("the server or another client was started again: back to the beginning of the round")
                self._server.renew()
                run.close()
                for segment, state in zip(segments, begun, strict=True):
                    segment.load_state_dict(state)
                continue
            except BaseException as error:
                # The others need not wait for this client.
                self._give_up(error)
                raise
            assert run.welcome is not None
            return run.welcome.settings

    def _bytes(self) -> tuple[int, int]:
        return self._server.traffic.bytes_sent, self._server.traffic.bytes_received

    def _learn(self, run: ClientRun) -> None:
        """Take part in a run until it is over; raises `ReconnectedError` where the server has to be greeted anew."""
        connections = self._server.connections
        self._deliver(run, run.begin())
        while not run.done:
            try:
                body, tensors = self._next_message(run, connections)
            except SplitsecError:
                if self._server.connections > connections:
                    # A server that was started again refuses what was on its way to the one before it.
                    raise ReconnectedError from None
                raise
            if isinstance(body, GreetAgain):
                raise ReconnectedError
            self._deliver(run, run.handle(body, tensors))

    def _deliver(self, run: ClientRun, out: Sequence[Outgoing]) -> None:
        """Send what the run says; what it asks the dealer is answered before anything else happens."""
        pending = deque(out)
        while pending:
            outgoing = pending.popleft()
            if outgoing.to != DEALER:
                self._server.send(outgoing.body, outgoing.tensors)
                continue
            try:
                answer = self._dealer.request_again(outgoing.body, patience=self._network.timeouts.join_timeout)
            except RestartedError as error:
                pending.extend(run.dealer_failed(error))
            else:
                pending.extend(run.handle(*answer))

    def _next_message(self, run: ClientRun, connections: int) -> tuple[Message, NamedTensors]:
        """Return the server's next message; one that has gone has as long to come back as at the beginning to come."""
        receive = partial(self._server.receive, spin=True, spin_seconds=TRAINING_SPIN_SECONDS, connections=connections)
        if run.welcome is None:
            return receive(self._network.timeouts.join_timeout)
        try:
            return receive(self._network.timeouts.timeout)
        except PartyTimeoutError:
            if not self._server.lost or self._network.timeouts.join_timeout <= self._network.timeouts.timeout:
                raise
            return receive(self._network.timeouts.join_timeout - self._network.timeouts.timeout)

    @property
    def _purpose(self) -> Purpose:
        return TRAINS

    def predict(self, images: torch.Tensor, query: Query | None = None) -> Predictions:
        """Encrypted predictions: the server learns neither images, nor activations, nor results.

        Args:
            images: (N, ...) in the front's dtype.
            query: rows of a query, what is revealed, and how.

        Raises:
            RangeError: an activation is not finite, or beyond what the tail's layers can take, or with
                `query.checked` a layer overflowed; names the layer.
            UnsupportedLayerError: the tail has a layer without an encrypted form.
            BudgetError: the server answers fewer rows of this client than these, in whole batches.
        """
        return self._predict(images, query or Query())

    def _predict(
        self,
        images: torch.Tensor,
        query: Query,
        *,
        shared: Callable[[ClientSession, torch.Tensor, range], Encoded] | None = None,
    ) -> Predictions:
        check_bounds(query)
        batch_size = query.batch_size
        self._check_predictable(images, query, looked_up=shared is None)
        self._inputs = images.shape[1:], images.dtype
        results: list[torch.Tensor] = []
        online_ms: list[float] = []
        offline_ms: list[float] = []
        shape = self._activation(images[:1].expand(batch_size, *images.shape[1:])).shape

        def ask(session: ClientSession) -> None:
            """Ask for what has no answer yet."""
            begun = len(results) * batch_size
            session.check_left(batches(len(images) - begun, batch_size), batch_size)
            for start in range(begun, len(images), batch_size):
                rows = images[start : start + batch_size]
                offline_ms.append(session.prepare())
                prepared = time.perf_counter()
                activation = self._activation(rows)
                if len(rows) < batch_size:
                    padding = torch.zeros(batch_size - len(rows), *activation.shape[1:])
                    activation = torch.cat([activation, padding])
                given = activation if shared is None else shared(session, activation, range(start, start + len(rows)))
                result = session.run(given)
                online_ms.append((time.perf_counter() - prepared) * 1e3)
                results.append(self._finish(result[: len(rows)]))
                if len(results) % 10 == 0 or start + batch_size >= len(images):
                    self._report(Predicted(self.name, min(start + batch_size, len(images)), len(images)))

        for attempt in range(SESSIONS):
            try:
                with self.session(shape, query) as session:
                    ask(session)
                    cost = session.last_cost
                break
            except RestartedError:
                if attempt + 1 == SESSIONS:
                    raise
                log.warning("the dealer was started again; predictions go on in a new session")
                del offline_ms[len(results) :], online_ms[len(results) :]
        outputs = torch.cat(results)
        labels, logits = (outputs, None) if query.reveal == "label" else (labels_of(outputs), outputs)
        return Predictions(labels, logits, online_ms, offline_ms, *cost, session.bytes_offline)

    def _check_predictable(self, images: torch.Tensor, query: Query, *, looked_up: bool) -> None:
        """Raise an error for images that the front cannot take, or a query that a U cannot answer.

        Args:
            looked_up: whether the front takes the images as they are; columns were tried when rows were aligned.
        """
        if self.head is not None and query.reveal == "label":
            raise ConfigError("the tail of a U ends before the labels: reveal its output, which the head takes")
        if looked_up and images.is_floating_point() == (vocabulary(self.front) is not None):
            due = "whole numbers, since the front looks them up" if images.is_floating_point() else "real numbers"
            raise MessageError(f"the images are {images.dtype}; give {due}, as the model was trained")
        if len(images) < 1:
            raise MessageError("there is nothing to predict: give at least one image")

    @contextmanager
    def session(self, shape: Sequence[int], query: Query | None = None) -> Iterator[ClientSession]:
        """Open a prediction session for activations of `shape`, batch dimension first.

        Args:
            query: what is revealed, and how; fewer queries are made ready ahead if memory does not hold them.
        """
        query = query or Query()
        check_bounds(query)
        request = self._wanted(tuple(shape), query)
        pair_seed = request.pair_seed
        opened = self._open(request)
        program = opened.program
        check_program(program)
        shape = joined_shape(opened.shares, shape[0]) if opened.shares else tuple(shape)
        if program.input_shape != shape:
            raise MessageError("the server compiled its tail for another shape")
        # Where ranges were measured on noise they are checked, also unasked.
        checks = query.checked or (bool(program.checks) and not program.guaranteed)
        if (program.reveals_label, bool(program.checks), program.comparison) != (
            query.reveal == "label",
            checks,
            query.comparison,
        ):
            raise MessageError("the server's program does not reveal, check or compare as was asked for")
        if opened.left is not None:
            self._report(Allowed(self.name, opened.left))
        with contextlib.ExitStack() as stack:
            # First of all: the server waits for this, and not for long.
            address, timeout = self._worker_address(opened.port), self._network.timeouts.timeout
            peer = stack.enter_context(session_peer(self._wire, address, self._network.peers[SERVER], timeout=timeout))
            predicted = predicted_cost(program)
            plan = predicted.plan
            seed = join_session(self._dealer, opened.session, CLIENT, self.name, plan)
            fetch = None
            if correction_count(plan, CLIENT):
                # Of its own, since the session's randomness is fetched in another thread.
                dealer = stack.enter_context(contextlib.closing(self._dealer_link()))
                fetch = partial(corrections, dealer, opened.session, plan, rank=CLIENT)
            try:
                masked, most = receive_masked_weights(peer, weight_shapes(plan))
                session = Session(
                    peer,
                    rank=CLIENT,
                    dealt_seed=seed,
                    pair_seed=pair_seed,
                    plan=plan,
                    corrections=fetch,
                    masked_weights=masked,
                    precision=program.precision,
                    comparison=program.comparison,
                )
                supply = Supply(session, processors=self._runtime.processors)
                try:
                    ahead = min(query.ahead, min(most, most_ahead(plan, CLIENT)) - 1)
                    yield ClientSession(
                        session,
                        supply,
                        opened,
                        predicted,
                        self._cut,
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

    def _wanted(self, shape: tuple[int, ...], query: Query) -> OpenSession:
        """Return what this client asks for, with a fresh seed and where its front comes from."""
        origin = self._origin()
        return OpenSession(
            shape,
            fresh_seed(),
            query.reveal,
            query.checked,
            query.comparison,
            origin.mark,
            origin.run,
            origin.rounds,
        )

    def _open(self, wanted: OpenSession) -> SessionOpened:
        """Ask the server for a session, and send it activations of noise where it has nothing to measure ranges on."""
        self._server.send(wanted)
        opened, _ = self._answer()
        if isinstance(opened, NeedsCalibration):
            self._server.send(Calibration(), {"activations": self._noise_activation(wanted)})
            self._answer()
            self._server.send(wanted)
            opened, _ = self._answer()
        if not isinstance(opened, SessionOpened):
            raise MessageError(f"the server answered {type(opened).__name__} to OpenSession")
        return opened

    def _noise_activation(self, wanted: OpenSession) -> torch.Tensor:
        """Return what the front makes of noise with mean 0 and standard deviation 1, float32 (rows, ...).

        The noise is the same for all parties: its seed is the mark that front and tail share, so it says nothing of
        this client's data but their shape. What the front makes of it says something of the front, which the server of
        an averaged run knows.
        """
        if self._inputs is None:
            raise RangeError(
                "the tail's weights guarantee no ranges: predict images once, whose shape noise for a calibration "
                "needs, or give the server a calibration"
            )
        noise = noise_inputs(CALIBRATION_ROWS, *self._inputs, wanted.mark, words=vocabulary(self.front))
        return self._activation(noise).float()

    def _origin(self) -> Origin:
        """Where the front's values come from; raises `ConfigError` if they have changed since."""
        origin = origin_of(self.front)
        segments = [self.front] if self.head is None else [self.front, self.head]
        check_unchanged(segments, "front")
        return origin

    def _worker_address(self, port: int) -> str:
        address = f"tcp://{urlsplit(self._network.server).hostname}:{port}"
        return address if self._network.reach is None else self._network.reach(address)

    def _answer(self, timeout: float | None = None) -> tuple[Message, NamedTensors]:
        """Return the server's next message that says more than that it waits for others, or is left from training."""
        while True:
            body, tensors = self._server.receive(timeout)
            if not isinstance(body, (Waiting, Missed, Combined)):
                return body, tensors

    def _dealer_link(self) -> Link[Message]:
        key = self._network.peers[DEALER]
        return Link(
            self._wire,
            self._network.dealer,
            peer=DEALER,
            peer_key=key,
            codec=dealer_codec,
            timeout=self._network.timeouts.timeout,
            others=self._network.peers,
        )

    def save(self, path: Path) -> None:
        """Write front and head, with the record of the run that trained them, for `load_trained`.

        Args:
            path: of a safetensors file.

        Raises:
            ConfigError: it cannot be written.
        """
        segments = [self.front] if self.head is None else [self.front, self.head]
        state = {key: value for segment in segments for key, value in segment.state_dict().items()}
        save_segment(path, state, role="front", party=self.name, cut=self._cut, origin=origin_of(self.front))

    def leave(self) -> None:
        """Tell the server that nothing more will come."""
        self._server.send(Leave())
        self._answer()

    def close(self) -> None:
        self._server.close()
        self._dealer.close()
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._give_up(error)
        self.close()

    def _give_up(self, error: BaseException) -> None:
        """Tell the server that this client ends, so that nobody waits for it."""
        reason = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"gave up ({type(error).__name__})"
        # Not the error's own words, which may hold the client's values; and whatever goes wrong here is not the reason.
        with contextlib.suppress(Exception):
            # To a server that is not there nothing is left behind that closing would wait for.
            if self._server.connected:
                self._server.send(GaveUp(reason))

    def _finish(self, result: torch.Tensor) -> torch.Tensor:
        if self.head is None:
            return result
        self.head.eval()
        with torch.no_grad():
            logits: torch.Tensor = self.head(result)
        return logits

    def _activation(self, images: torch.Tensor) -> torch.Tensor:
        self.front.eval()
        with torch.no_grad():
            activation: torch.Tensor = self.front(images)
        check_batch(activation, images, self._cut)
        return activation
