"""The client: owns its data and the front, trains with the server, and asks for encrypted predictions."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import torch
from torch import nn

from splitsec.cut import Origin, check_batch, is_u, origin_of, vocabulary
from splitsec.errors import (
    AuthenticationError,
    ConfigError,
    MessageError,
    PartyTimeoutError,
    RangeError,
    RefusedError,
    RestartedError,
    SplitsecError,
)
from splitsec.mpc.checking import check_program
from splitsec.mpc.context import CLIENT, ComparisonKind
from splitsec.mpc.messages import Close
from splitsec.mpc.plan import correction_count, weight_shapes
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.program import Reveal
from splitsec.mpc.run import Encoded
from splitsec.mpc.session import Session
from splitsec.mpc.shared import client_shares, shared_weights
from splitsec.mpc.supply import Supply, most_ahead
from splitsec.parties.allowance import batches
from splitsec.parties.asking import ClientSession, predicted_cost, receive_masked_weights, session_peer
from splitsec.parties.contributing import joined_shape
from splitsec.parties.door import check_unchanged
from splitsec.parties.events import Allowed, Predicted, Report, ignore
from splitsec.parties.fetching import corrections, join_session
from splitsec.parties.learning import TRAINS, Learner, Purpose
from splitsec.parties.names import DEALER, SERVER
from splitsec.parties.noise_inputs import noise_inputs
from splitsec.training.checkpoints import Checkpoints, MemoryCheckpoints
from splitsec.training.data import Part
from splitsec.training.messages import (
    Calibration,
    Combined,
    DealerBody,
    GaveUp,
    GreetAgain,
    Leave,
    Missed,
    NeedsCalibration,
    OpenSession,
    ServerBody,
    SessionOpened,
    Waiting,
    dealer_codec,
    server_codec,
)
from splitsec.training.schedule import Schedule
from splitsec.training.segment_files import save_segment
from splitsec.training.vertical import Columns
from splitsec.transport import TRAINING_SPIN_SECONDS, KeyPair, Link, Reconnected, Wire

log = logging.getLogger(__name__)
# Rows of noise on which a server measures ranges.
CALIBRATION_ROWS = 16
# How many sessions a prediction may take, where the dealer is started again in the middle.
SESSIONS = 4


@dataclass(frozen=True)
class Predictions:
    """What encrypted prediction gave and cost.

    Attributes:
        labels: int64 (N,): the class with the largest logit, see `labels_of`.
        logits: float32 (N, classes), opened to this client alone; None where only labels are revealed.
        online_ms: milliseconds a query from the images to the opened result.
        offline_ms: milliseconds a query to get its randomness ready at both parties.
        rounds: rounds a query, online.
        bytes_sent, bytes_received: bytes a query, online, as this client sees them.
        bytes_offline: bytes a query that the dealer sends to the server.
        ids: of columns, whose result each row is; else empty.
    """

    labels: torch.Tensor = field(repr=False)
    logits: torch.Tensor | None = field(repr=False)
    online_ms: list[float] = field(repr=False)
    offline_ms: list[float] = field(repr=False)
    rounds: int
    bytes_sent: int
    bytes_received: int
    bytes_offline: int
    ids: tuple[str, ...] = field(default=(), repr=False)

    @property
    def online_ms_median(self) -> float:
        return median(self.online_ms)

    @property
    def offline_ms_median(self) -> float:
        return median(self.offline_ms)


class Client:
    """One client. Close it, or use it as a context manager.

    Args:
        front: the client's segment, `SplitModel(...).front`; it is trained in place.
        head: its other segment, `SplitModel(...).head`, if the cut is a U.
        cut: the name of the cut.
        keys: this client's key pair; its name is the client's.
        peers: public keys of the server and the dealer, under `server` and `dealer`.
        server, dealer: their addresses.
        timeout: seconds to wait for an answer.
        join_timeout: seconds to wait for the other clients to come.
        processors: where randomness may be made ready while a query runs; None leaves it to the kernel.
        reach: turns the address of a prediction session's socket into the one to connect to, where a gateway lies
            between client and server.

    Example:
        >>> with Client(split.front, cut=split.cut, keys=keys, peers=peers, server=..., dealer=...) as client:
        ...     client.train(part, seed=0)
        ...     print(client.predict(part.test_images).labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        front: nn.Module,
        *,
        cut: str,
        head: nn.Module | None = None,
        keys: KeyPair,
        peers: Mapping[str, bytes],
        server: str,
        dealer: str,
        timeout: float = 60.0,
        join_timeout: float = 120.0,
        processors: Sequence[int] | None = None,
        reach: Callable[[str], str] | None = None,
        report: Report = ignore,
    ) -> None:
        missing = [name for name in (SERVER, DEALER) if name not in peers]
        if missing:
            raise AuthenticationError(f"no public key of {', '.join(missing)}; put NAME.key into its key directory")
        if is_u(cut) != (head is not None):
            raise ConfigError(f"the cut '{cut}' {'needs a head' if head is None else 'has no head'}; see SplitModel")
        self.front = front
        self.head = head
        self.name = keys.name
        self._cut = cut
        self._peers = peers
        self._server_address = server
        self._dealer_address = dealer
        self._timeout = timeout
        self._join_timeout = join_timeout
        self._processors = processors
        self._reach = reach
        self._report = report
        self._learner: Learner | None = None
        # Shape and dtype of one input, once some have been seen.
        self._inputs: tuple[torch.Size, torch.dtype] | None = None
        self._wire = Wire(keys)
        try:
            self._server: Link[ServerBody] = Link(
                self._wire,
                server,
                peer=SERVER,
                peer_key=peers[SERVER],
                codec=server_codec,
                timeout=timeout,
                others=peers,
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
        checkpoints: Path | None = None,
        ledgers: Path | None = None,
        epsilon_limit: float = 0.0,
    ) -> Schedule:
        """Take part in the server's run with this client's data; `front` holds the combined segment afterwards.

        Args:
            part: this client's rows; or its columns, where the server joins activations of the same people.
            seed: goes into the order of the batches, dropout and the like, beside a fresh secret of this run.
            repeatable: leave the secret out, so that a run with the same seeds repeats bit for bit, for tests and
                demonstrations: **whoever sees two such runs, with this client and without it, has its update**.
            checkpoints: a directory of this client's own; a run that was killed goes on from the last round that all
                its parties have finished.
            ledgers: a directory for the ledger of what the run costs this client's privacy; None puts it beside the
                checkpoints, if there are any. Keep those of all runs over the same data in one: they are added up.
            epsilon_limit: what all runs together, by the ledgers in that directory, may spend of any record of this
                client, at the run's delta; a run that would spend more is refused before its first step. 0: no limit.

        Raises:
            ConfigError: the checkpoints are of another run.
            BudgetError: the run's privacy budget is spent, or the run would exceed `epsilon_limit`.
            PartyTimeoutError, AuthenticationError, RefusedError: the server or the dealer does not play along.
            RangeError: an activation or a parameter is not finite or out of range.
        """
        if not isinstance(part, Columns):
            self._inputs = part.train_images.shape[1:], part.train_images.dtype
        segments = [self.front] if self.head is None else [self.front, self.head]
        begun = [{key: value.clone() for key, value in one.state_dict().items()} for one in segments]
        # In memory, so that a server that is started again need not find this client started again as well.
        kept = MemoryCheckpoints() if checkpoints is None else Checkpoints(checkpoints)
        make = partial(
            Learner,
            segments,
            part,
            name=self.name,
            cut=self._cut,
            seed=seed,
            repeatable=repeatable,
            traffic=lambda: (self._server.traffic.bytes_sent, self._server.traffic.bytes_received),
            report=self._report,
            checkpoints=kept,
            ledgers=checkpoints if ledgers is None else ledgers,
            epsilon_limit=epsilon_limit,
            purpose=self._purpose,
        )
        while True:
            learner = self._learner = make()
            try:
                self._learn(learner)
            except Reconnected:
                # Whatever was on its way is lost, so begin as a client does that was started again.
                log.warning("the server or another client was started again: back to the beginning of the round")
                self._server.renew()
                learner.close()
                for segment, state in zip(segments, begun, strict=True):
                    segment.load_state_dict(state)
                continue
            except BaseException as error:
                # The others need not wait for this client.
                self._give_up(error)
                raise
            assert learner.welcome is not None
            return learner.welcome.schedule

    def _learn(self, learner: Learner) -> None:
        """Take part in a run until it is over; raises `Reconnected` where the server has to be greeted anew."""
        connections = self._server.connections
        out = deque(learner.begin())
        while not learner.done:
            while out:
                to, body, tensors = out.popleft()
                if to == DEALER:
                    try:
                        answer = self._dealer.request_again(body, patience=self._join_timeout)  # type: ignore[arg-type]
                        out.extend(learner.take(*answer))
                    except RestartedError:
                        out.extend(learner.seeds_lost())
                else:
                    self._server.send(body, tensors)  # type: ignore[arg-type]
            if not learner.done:
                try:
                    message = self._next_message(learner, connections)
                except SplitsecError:
                    if self._server.connections > connections:
                        # A server that was started again refuses what was on its way to the one before it.
                        raise Reconnected from None
                    raise
                if isinstance(message[0], GreetAgain):
                    raise Reconnected
                out.extend(learner.take(*message))

    def _next_message(self, learner: Learner, connections: int) -> tuple[ServerBody, list[torch.Tensor]]:
        """The server's next message; one that has gone has as long to come back as at the beginning to come."""
        receive = partial(self._server.receive, spin=True, spin_seconds=TRAINING_SPIN_SECONDS, connections=connections)
        if learner.welcome is None:
            return receive(self._join_timeout)
        try:
            return receive(self._timeout)
        except PartyTimeoutError:
            if not self._server.lost or self._join_timeout <= self._timeout:
                raise
            return receive(self._join_timeout - self._timeout)

    @property
    def _purpose(self) -> Purpose:
        return TRAINS

    def predict(
        self,
        images: torch.Tensor,
        *,
        batch_size: int = 1,
        ahead: int = 1,
        reveal: Reveal = "logits",
        checked: bool = False,
        comparison: ComparisonKind = "tables",
    ) -> Predictions:
        """Encrypted predictions: the server learns neither images, nor activations, nor results.

        Args:
            images: (N, ...) in the front's dtype.
            batch_size: images a query; the last query is padded with zeros and the padding dropped.
            ahead: how many queries' randomness is made ready while one runs; it takes processors that the query
                could use.
            reveal: `"label"` opens nothing but the label of each image, not even to this client.
            checked: compare every layer's values with its bound, at the price of five rounds.
            comparison: `"dcf"` takes two rounds less a layer, and twenty times the bytes offline: for a slow link
                with time to make randomness ready.

        Raises:
            RangeError: an activation is not finite, or beyond what the tail's layers can take, or with `checked` a
                layer overflowed; names the layer.
            UnsupportedLayerError: the tail has a layer without an encrypted form.
            BudgetError: the server answers fewer rows of this client than these, in whole batches.
        """
        return self._predict(images, batch_size, ahead, reveal, checked, comparison)

    def _predict(
        self,
        images: torch.Tensor,
        batch_size: int,
        ahead: int,
        reveal: Reveal,
        checked: bool,
        comparison: ComparisonKind,
        *,
        shared: Callable[[ClientSession, torch.Tensor, range], Encoded] | None = None,
    ) -> Predictions:
        if self.head is not None and reveal == "label":
            raise ConfigError("the tail of a U ends before the labels: reveal its output, which the head takes")
        # Columns have been tried on the front when rows were aligned.
        if shared is None and images.is_floating_point() == (vocabulary(self.front) is not None):
            wanted = "whole numbers, since the front looks them up" if images.is_floating_point() else "real numbers"
            raise MessageError(f"the images are {images.dtype}; give {wanted}, as the model was trained")
        if len(images) < 1 or batch_size < 1:
            raise MessageError("there is nothing to predict: give at least one image and a batch size of at least 1")
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

        open_session = partial(self.session, shape, ahead=ahead, reveal=reveal, checked=checked, comparison=comparison)
        for attempt in range(SESSIONS):
            try:
                with open_session() as session:
                    ask(session)
                    cost = session.last_cost
                break
            except RestartedError:
                if attempt + 1 == SESSIONS:
                    raise
                log.warning("the dealer was started again; predictions go on in a new session")
                del offline_ms[len(results) :], online_ms[len(results) :]
        found = torch.cat(results)
        labels, logits = (found, None) if reveal == "label" else (labels_of(found), found)
        return Predictions(labels, logits, online_ms, offline_ms, *cost, session.bytes_offline)

    @contextmanager
    def session(
        self,
        shape: Sequence[int],
        *,
        ahead: int = 1,
        reveal: Reveal = "logits",
        checked: bool = False,
        comparison: ComparisonKind = "tables",
    ) -> Iterator[ClientSession]:
        """An open prediction session for activations of `shape`, batch dimension first.

        Args:
            ahead: how many queries' randomness is made ready while one runs; fewer if memory does not hold them.
            reveal, checked, comparison: as in `predict`.
        """
        wanted = self._wanted(tuple(shape), reveal, checked, comparison)
        pair_seed = wanted.pair_seed
        opened = self._open(wanted)
        program = opened.program
        check_program(program)
        shape = joined_shape(opened.shares, shape[0]) if opened.shares else tuple(shape)
        if program.input_shape != shape:
            raise MessageError("the server compiled its tail for another shape")
        # Where ranges were measured on noise they are checked, also unasked.
        checks = checked or (bool(program.checks) and not program.guaranteed)
        if (program.reveals_label, bool(program.checks), program.comparison) != (
            reveal == "label",
            checks,
            comparison,
        ):
            raise MessageError("the server's program does not reveal, check or compare as was asked for")
        if opened.left is not None:
            self._report(Allowed(self.name, opened.left))
        with contextlib.ExitStack() as stack:
            # First of all: the server waits for this, and not for long.
            address = self._worker_address(opened.port)
            peer = stack.enter_context(session_peer(self._wire, address, self._peers[SERVER], timeout=self._timeout))
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
                supply = Supply(session, processors=self._processors)
                try:
                    ahead = min(ahead, min(most, most_ahead(plan, CLIENT)) - 1)
                    yield ClientSession(
                        session,
                        supply,
                        peer,
                        program,
                        predicted,
                        self._cut,
                        ahead=ahead,
                        name=opened.session,
                        weights=client_shares(seed, shared_weights(program)),
                        shares=opened.shares,
                        left=opened.left,
                    )
                finally:
                    supply.close()
                peer.send(Close())
            except Exception:
                # Not the error's own words: they may hold the client's values.
                peer.refuse(RefusedError("the client gave up"))
                raise

    def _wanted(
        self,
        shape: tuple[int, ...],
        reveal: Reveal = "logits",
        checked: bool = False,
        comparison: ComparisonKind = "tables",
    ) -> OpenSession:
        """What this client asks for, with a fresh seed and where its front comes from."""
        origin = self._origin()
        return OpenSession(shape, fresh_seed(), reveal, checked, comparison, origin.mark, origin.run, origin.rounds)

    def _open(self, wanted: OpenSession) -> SessionOpened:
        """Ask the server for a session, and send it activations of noise where it has nothing to measure ranges on."""
        self._server.send(wanted)
        opened, _ = self._answer()
        if isinstance(opened, NeedsCalibration):
            self._server.send(Calibration(), [self._noise_activation(wanted)])
            self._answer()
            self._server.send(wanted)
            opened, _ = self._answer()
        if not isinstance(opened, SessionOpened):
            raise MessageError(f"the server answered {type(opened).__name__} to OpenSession")
        return opened

    def _noise_activation(self, wanted: OpenSession) -> torch.Tensor:
        """What the front makes of noise with mean 0 and standard deviation 1, float32 (rows, ...).

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
        address = f"tcp://{urlsplit(self._server_address).hostname}:{port}"
        return address if self._reach is None else self._reach(address)

    def _answer(self, timeout: float | None = None) -> tuple[ServerBody, list[torch.Tensor]]:
        """The server's next message that says more than that it waits for others, or is left from training."""
        while True:
            body, tensors = self._server.receive(timeout)
            if not isinstance(body, (Waiting, Missed, Combined)):
                return body, tensors

    def _dealer_link(self) -> Link[DealerBody]:
        key = self._peers[DEALER]
        return Link(
            self._wire,
            self._dealer_address,
            peer=DEALER,
            peer_key=key,
            codec=dealer_codec,
            timeout=self._timeout,
            others=self._peers,
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


def labels_of(logits: torch.Tensor) -> torch.Tensor:
    """The class with the largest logit, along the second dimension; of a single logit whether it is above zero."""
    if logits.dim() == 1 or (logits.dim() == 2 and logits.shape[1] == 1):
        return (logits.reshape(-1) > 0).long()
    return logits.argmax(1)
