"""The server: runs the schedule, owns the tail, combines fronts it cannot read, and answers encrypted predictions."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import torch
from torch import fx

from splitsec.cut import INPUT, cut_names, is_u
from splitsec.errors import (
    AuthenticationError,
    ConfigError,
    MessageError,
    PartyTimeoutError,
    RefusedError,
    SplitsecError,
)
from splitsec.mpc.messages import Done
from splitsec.parties.events import EpochDone, Joined, Listening, Report, ignore
from splitsec.parties.learning import MEANS
from splitsec.parties.names import DEALER, SERVER
from splitsec.parties.pool import WorkerPool
from splitsec.parties.serving import PredictionService
from splitsec.parties.steps import Steps, USteps
from splitsec.parties.worker import IDLE_SECONDS, LEAVE_SECONDS
from splitsec.training.aggregation import MAX_TOTAL_WEIGHT, combine
from splitsec.training.loop import EpochBook, TailTrainer
from splitsec.training.messages import (
    PROTOCOL,
    Batch,
    Combined,
    DealerBody,
    HeadGradient,
    Hello,
    Leave,
    MaskSum,
    OpenMasks,
    OpenSession,
    Schedule,
    ServerBody,
    Upload,
    Waiting,
    Welcome,
    dealer_codec,
    server_codec,
)
from splitsec.transport import Hub, Incoming, KeyPair, Link, Refused, Sender, Wire, expect_tensor

log = logging.getLogger(__name__)


class _RunFailed(Exception):
    """The run cannot go on, for anybody."""

    def __init__(self, reason: SplitsecError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Server:
    """The server of one run.

    Args:
        tail: the server's segment, `SplitModel(...).tail`; it is trained in place.
        cut: the name of the cut; clients with another are refused.
        schedule: who takes part, for how many epochs, with which batch size and learning rate. With 0 epochs the
            tail is used as it is, for predictions only.
        keys: the server's key pair.
        peers: public keys of the dealer and the clients by name.
        address: where to listen, such as `tcp://127.0.0.1:5555`; port `*` takes a free one.
        dealer: the dealer's address.
        timeout: seconds without progress after which the missing party is named and the run ends.
        join_timeout: seconds to wait for all clients to come.
        stay: go on answering predictions when all clients have left.
        calibration: activations (N, ...) of no client, from which the bounds of a deep tail's values are measured;
            without them the bounds are computed from the weights.
        processors: those that prediction sessions may use, each keeping to one of them in turn; None leaves it to
            the kernel.
        pool: where the workers of prediction sessions come from, if several servers of a process share one; whoever
            made it closes it.

    Raises:
        AddressError: the address cannot be bound.
        ConfigError: the schedule names clients without a key, or fewer than two.

    Example:
        >>> split = SplitModel(model, cut="pool")  # doctest: +SKIP
        >>> server = Server(split.tail, cut=split.cut, schedule=Schedule(clients=("a", "b")), keys=keys, peers=peers,
        ...                 address="tcp://127.0.0.1:*", dealer=dealer_address)  # doctest: +SKIP
        >>> server.serve()  # doctest: +SKIP
    """

    def __init__(
        self,
        tail: fx.GraphModule,
        *,
        cut: str,
        schedule: Schedule,
        keys: KeyPair,
        peers: Mapping[str, bytes],
        address: str,
        dealer: str,
        timeout: float = 60.0,
        join_timeout: float = 120.0,
        stay: bool = False,
        calibration: torch.Tensor | None = None,
        processors: Sequence[int] | None = None,
        pool: WorkerPool | None = None,
        report: Report = ignore,
    ) -> None:
        _check_schedule(schedule, peers)
        if cut_names(cut)[0] == INPUT and schedule.epochs:
            raise ConfigError("a cut at the input would train on the clients' inputs in plain; choose a later cut")
        self.tail = tail
        self._cut = cut
        self._schedule = schedule
        self._keys = keys
        self._peers = dict(peers)
        self._dealer_address = dealer
        self._timeout = timeout
        self._join_timeout = join_timeout
        self._stay = stay
        self._calibration = calibration
        self._processors = processors
        self._report = report
        self._stop = threading.Event()
        self._run = secrets.token_hex(16)
        self._steps = (USteps if is_u(cut) else Steps)(
            TailTrainer(tail, learning_rate=schedule.learning_rate),
            cut=cut,
            batch_size=schedule.batch_size,
            send=self._reply,
        )
        self._members: dict[str, Hello] = {}
        self._routes: dict[str, Sender] = {}
        self._left: set[str] = set()
        self._epoch = 0 if schedule.epochs else None
        self._uploads: dict[str, tuple[Sender, torch.Tensor]] = {}
        self._progress = time.monotonic()
        self._told = time.monotonic()
        self._service: PredictionService | None = None
        self._pool = pool
        self._own_pool = pool is None
        self._wire = Wire(keys)
        try:
            allowed = {name: key for name, key in peers.items() if name in schedule.clients}
            self._hub: Hub[ServerBody] = Hub(self._wire, address, allowed, server_codec)
            self._dealer: Link[DealerBody] = Link(
                self._wire,
                dealer,
                peer=DEALER,
                peer_key=peers[DEALER],
                codec=dealer_codec,
                timeout=timeout,
            )
        except BaseException:
            self._wire.close()
            raise
        self.address = self._hub.address

    def serve(self) -> None:
        """Run the schedule, then answer predictions until every client has left (or `stop`, with `stay`).

        Raises:
            PartyTimeoutError: a client never came or fell silent; the others are told.
        """
        self._report(Listening(SERVER, self.address))
        self._progress = time.monotonic()
        try:
            self._ready_workers()
            while not self._stop.is_set() and not self._everybody_left():
                incoming = self._hub.receive(0.2)
                if incoming is not None:
                    self._progress = time.monotonic()
                    self._answer(incoming)
                self._check_time()
                self._keep_waiting()
        except _RunFailed as failed:
            self._tell_all(failed.reason)
            raise failed.reason from failed.__cause__
        except SplitsecError as error:
            self._tell_all(error)
            raise
        except Exception:
            self._tell_all(RefusedError("the server failed; see its log"))
            raise
        finally:
            if self._pool is not None and self._own_pool:
                self._pool.close(self._timeout + LEAVE_SECONDS)
            self._dealer.close()
            self._hub.close()
            self._wire.close()

    def stop(self) -> None:
        """Let `serve` return; safe from any thread or signal handler."""
        self._stop.set()

    def _answer(self, incoming: Incoming[ServerBody]) -> None:
        try:
            self._handle(incoming)
        except SplitsecError as error:
            self._hub.refuse(incoming.sender, error)
        except _RunFailed:
            raise
        except Exception as error:
            # What one client sends must not end the run of the others, whatever torch thinks of it.
            log.error(
                "a message of %s failed: %r", incoming.sender.name, error, exc_info=log.isEnabledFor(logging.DEBUG)
            )
            self._hub.refuse(incoming.sender, RefusedError("the server could not handle the message; see its log"))

    def _reply(self, sender: Sender, body: ServerBody, tensors: Sequence[torch.Tensor]) -> None:
        self._hub.send(sender, body, tensors)

    def _tell_all(self, error: SplitsecError) -> None:
        for sender in self._routes.values():
            self._hub.send(sender, Refused(reason=str(error), error=type(error).__name__))

    def _keep_waiting(self) -> None:
        """Tell those who wait for others, every few seconds, that they are not forgotten."""
        if time.monotonic() - self._told < min(5.0, self._timeout / 4):
            return
        self._told = time.monotonic()
        if len(self._members) < len(self._schedule.clients):
            waiting = list(self._routes.values())
        else:
            waiting = [one.sender for one in self._steps.pending.values()] + [one for one, _ in self._uploads.values()]
        for sender in waiting:
            self._hub.send(sender, Waiting())

    def _handle(self, incoming: Incoming[ServerBody]) -> None:
        sender = incoming.sender
        match incoming.body:
            case Hello():
                self._welcome(sender, incoming.body)
            case Batch(epoch) | HeadGradient(epoch):
                self._take_step(incoming, epoch)
            case Upload():
                self._take_upload(incoming)
            case OpenSession():
                self._hub.send(sender, self._prediction_service().open(sender.name, incoming.body))
            case Leave():
                self._left.add(sender.name)
                self._hub.send(sender, Done())
            case other:
                raise MessageError(f"the server does not answer {type(other).__name__}")

    def _welcome(self, sender: Sender, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            raise RefusedError(f"{sender.name} speaks protocol {hello.protocol}, the server {PROTOCOL}; update it")
        if hello.cut != self._cut:
            raise RefusedError(f"{sender.name} cuts at '{hello.cut}', the server at '{self._cut}'")
        if hello.samples < 1:
            raise RefusedError(f"{sender.name} has no samples")
        if sender.name in self._members:
            raise RefusedError(f"{sender.name} is in the run already; a second start needs a new run")
        if hello.samples + sum(other.samples for other in self._members.values()) > MAX_TOTAL_WEIGHT:
            raise RefusedError(f"the clients' samples add up to more than {MAX_TOTAL_WEIGHT}")
        for name, other in self._members.items():
            if (other.front, other.values) != (hello.front, hello.values):
                raise RefusedError(
                    f"the front of {sender.name} does not begin like that of {name}: use the same model, cut and seed"
                )
        self._members[sender.name] = hello
        self._routes[sender.name] = sender
        self._report(Joined(SERVER, sender.name))
        if len(self._members) == len(self._schedule.clients):
            for route in self._routes.values():
                self._hub.send(route, Welcome(self._run, self._schedule))

    def _take_step(self, incoming: Incoming[ServerBody], epoch: int) -> None:
        name = incoming.sender.name
        self._require_turn(name, epoch)
        self._steps.take(incoming)
        self._routes[name] = incoming.sender
        self._step_when_complete()

    def _take_upload(self, incoming: Incoming[ServerBody]) -> None:
        upload, name = incoming.body, incoming.sender.name
        assert isinstance(upload, Upload)
        self._require_turn(name, upload.round)
        if len(incoming.tensors) != 1:
            raise MessageError(f"an upload has one vector, not {len(incoming.tensors)} tensors")
        if self._steps.owes(name):
            raise MessageError(f"{name} owes the head's gradient of its last step")
        length = self._members[name].values
        expect_tensor(incoming.tensors[0], what="the upload", dtype=torch.int64, shape=(length,))
        self._routes[name] = incoming.sender
        self._uploads[name] = (incoming.sender, incoming.tensors[0])
        if len(self._uploads) == len(self._schedule.clients):
            try:
                self._combine()
            except SplitsecError as error:
                raise _RunFailed(error) from error
        else:
            self._step_when_complete()

    def _require_turn(self, name: str, epoch: int) -> None:
        if self._epoch is None or len(self._members) < len(self._schedule.clients):
            raise RefusedError("no training is running")
        if epoch != self._epoch:
            raise MessageError(f"epoch {epoch} is not running; the run is in epoch {self._epoch}")
        if name in self._uploads or name in self._steps.pending:
            raise MessageError(f"{name} has sent its part and must wait for the others")

    def _step_when_complete(self) -> None:
        try:
            self._steps.step_when_complete([name for name in self._schedule.clients if name not in self._uploads])
        except SplitsecError as error:
            raise _RunFailed(error) from error

    def _combine(self) -> None:
        assert self._epoch is not None
        names = tuple(self._schedule.clients)
        vectors = [self._uploads[name][1] for name in names]
        request = OpenMasks(self._run, self._epoch, names, len(vectors[0]))
        answer, tensors = self._dealer.request(request)
        if not isinstance(answer, MaskSum) or answer.round != self._epoch or len(tensors) != 1:
            raise MessageError("the dealer answered another request")
        mask_sum = expect_tensor(tensors[0], what="the sum of masks", dtype=torch.int64, shape=(len(vectors[0]),))
        weight = sum(self._members[name].samples for name in names)
        average = combine(vectors, mask_sum, total_weight=weight)
        loss, accuracy = self._steps.book.loss, self._steps.book.accuracy
        if is_u(self._cut):
            # What only clients know comes with their uploads, of all together.
            loss, accuracy = average[-MEANS:].tolist()
        done = Combined(self._epoch, loss, accuracy)
        for name in names:
            self._hub.send(self._uploads[name][0], done, [average])
        traffic = list(self._hub.traffic.values())
        self._epoch += 1
        self._report(
            EpochDone(
                SERVER,
                epoch=self._epoch,
                epochs=self._schedule.epochs,
                loss=done.loss,
                accuracy=done.accuracy,
                bytes_sent=sum(one.bytes_sent for one in traffic),
                bytes_received=sum(one.bytes_received for one in traffic),
            )
        )
        self._uploads = {}
        self._steps.book = EpochBook()
        if self._epoch == self._schedule.epochs:
            self._epoch = None
        self._ready_workers()

    def _ready_workers(self) -> None:
        """Start what workers come from: it takes seconds, so during the last epoch rather than after it."""
        if self._pool is None and (self._epoch is None or self._epoch + 1 >= self._schedule.epochs):
            self._pool = WorkerPool()

    def _prediction_service(self) -> PredictionService:
        if self._epoch is not None:
            raise RefusedError("the tail is still in training; open a session when the run is over")
        if self._service is None:
            assert self._pool is not None
            self._service = PredictionService(
                self.tail,
                pool=self._pool,
                keys=self._keys,
                processors=self._processors,
                peers=self._peers,
                dealer_address=self._dealer_address,
                host=urlsplit(self.address).hostname or "127.0.0.1",
                timeout=self._timeout,
                calibration=self._calibration,
            )
        return self._service

    def _everybody_left(self) -> bool:
        return not self._stay and self._left >= set(self._schedule.clients)

    def _check_time(self) -> None:
        silent = time.monotonic() - self._progress
        if len(self._members) < len(self._schedule.clients) and self._schedule.epochs:
            if silent > self._join_timeout:
                missing = [name for name in self._schedule.clients if name not in self._members]
                raise PartyTimeoutError(f"{', '.join(missing)} did not come within {self._join_timeout:g} s")
        elif self._epoch is not None:
            if silent > self._timeout:
                missing = [n for n in self._schedule.clients if n not in self._steps.pending and n not in self._uploads]
                raise PartyTimeoutError(
                    f"{', '.join(missing)} sent nothing for {self._timeout:g} s in epoch {self._epoch + 1}"
                )
        elif not self._stay and silent > IDLE_SECONDS and not (self._service and self._service.active):
            missing = sorted(set(self._schedule.clients) - self._left)
            raise PartyTimeoutError(f"{', '.join(missing)} neither asked nor left for {IDLE_SECONDS:g} s")


def _check_schedule(schedule: Schedule, peers: Mapping[str, bytes]) -> None:
    if len(set(schedule.clients)) != len(schedule.clients) or len(schedule.clients) < 2:
        raise ConfigError("a run needs at least two different clients: the sum over one would show its parameters")
    missing = [name for name in (*schedule.clients, DEALER) if name not in peers]
    if missing:
        raise AuthenticationError(f"no public key of {', '.join(missing)}; put NAME.key into the key directory")
    if schedule.epochs < 0 or schedule.batch_size < 1 or not schedule.learning_rate > 0:
        raise ConfigError("epochs must be 0 or more, the batch size 1 or more, the learning rate above 0")
