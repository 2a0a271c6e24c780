"""The server: runs the training, owns the tail, combines fronts it cannot read, and answers encrypted predictions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import fx, nn

from splitsec.cut import INPUT, Origin, cut_names, is_u, origin_of
from splitsec.cut.belonging import check_belongs, check_unchanged
from splitsec.cut.segment_files import save_segment
from splitsec.errors import (
    ConfigError,
    MessageError,
    PartyTimeoutError,
    RangeError,
    RefusedError,
    SplitsecError,
)
from splitsec.events import Listening, with_traffic
from splitsec.mpc.program.compile import DEFAULT_LIMIT
from splitsec.mpc.ring import check_range
from splitsec.mpc.session.messages import Done
from splitsec.parties.messages import Leave, dealer_codec, server_codec
from splitsec.parties.model_part_client import Halves
from splitsec.parties.setup import Network, Runtime, Serving, Storage
from splitsec.party_names import DEALER, SERVER
from splitsec.prediction.joint_inputs import Contributors
from splitsec.prediction.messages import Ask, Calibration, Half, NeedsCalibration, OpenSession, Serve
from splitsec.prediction.server.allowance import open_book
from splitsec.prediction.server.programs import CalibrationNeededError, Programs
from splitsec.prediction.server.service import PredictionService, SessionNetwork
from splitsec.prediction.server.worker import IDLE_SECONDS
from splitsec.prediction.server.worker_pool import WorkerPool
from splitsec.settings.answers import check_answer_rules
from splitsec.settings.run import RunSettings, check_run_settings
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.messages import GaveUp, Hello, Waiting
from splitsec.training.server.run import RunFailed, ServerRun
from splitsec.transport import (
    NO_TENSORS,
    TRAINING_SPIN_SECONDS,
    Hub,
    Incoming,
    Link,
    Message,
    NamedTensors,
    Refused,
    Sender,
    Wire,
)
from splitsec.transport.outgoing import Outgoing

log = logging.getLogger(__name__)
# A client that has vanished after training may be started again; after so long it is not waited for.
GONE_SECONDS = 30.0
# Activations of noise on which ranges are measured.
MOST_CALIBRATION = 64
PROBE_SECONDS = 5.0


class Server:
    """The server of one run.

    Args:
        tail: the server's segment, `SplitModel(...).tail`; it is trained in place. None where clients give a model in
            parts.
        cut: the name of the cut; clients with another are refused.
        settings: who takes part, for how many epochs, with which batch size and learning rate. With 0 epochs the
            tail is used as it is, for predictions only: see `load_trained`.
        network: keys of the server, the dealer and the clients; where to listen; the dealer's address; timeouts. A
            client that is silent for too long is dropped from the round, and named; with fewer clients left than
            `minimum_clients` the run ends.
        serving: how predictions are answered.
        storage: where checkpoints are kept.
        runtime: seed of dropout in the tail, processors of prediction sessions, who hears of events.

    Raises:
        AddressError: the address cannot be bound.
        ConfigError: the settings name clients without a key, or fewer than two; or with 0 epochs the tail's values
            have changed since its model was cut, see `SplitModel.mark`.

    Example:
        >>> split = SplitModel(model, cut="pool")  # doctest: +SKIP
        >>> network = Network(keys=keys, peers=peers, address="tcp://127.0.0.1:*", dealer=address)  # doctest: +SKIP
        >>> server = Server(split.tail, cut=split.cut, settings=RunSettings(clients=("a", "b")),
        ...                 network=network)  # doctest: +SKIP
        >>> server.serve()  # doctest: +SKIP
    """

    def __init__(
        self,
        tail: fx.GraphModule | None,
        *,
        cut: str,
        settings: RunSettings,
        network: Network,
        serving: Serving | None = None,
        storage: Storage | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        serving, storage, runtime = serving or Serving(), storage or Storage(), runtime or Runtime()
        check_run_settings(settings)
        network.check_peers(*settings.clients, DEALER)
        if cut_names(cut)[0] == INPUT and settings.epochs:
            raise ConfigError("a cut at the input would train on the clients' inputs in plain; choose a later cut")
        check_answer_rules(serving.rules, labels=tail is not None and not is_u(cut))
        if tail is not None and not settings.epochs:
            check_unchanged([tail], "tail")
        # A count that cannot be read or written is to be known before the run, not after it.
        open_book(serving.rules)
        self.tail = tail
        self.cut = cut
        self._settings = settings
        self._network = network
        self._serving = serving
        self._processors = runtime.processors
        self._report = runtime.report
        self._stop = threading.Event()
        self._routes: dict[str, Sender] = {}
        self._left: set[str] = set()
        # Who has said in training that it ends, and has not come back.
        self._ended: set[str] = set()
        self._looked = 0.0
        self._missing_since: dict[str, float] = {}
        self._keeps = storage.checkpoints is not None
        self._progress = self._told = time.monotonic()
        self._halves = Halves(settings) if settings.in_parts else None
        # Sessions that wait for other clients, and since when.
        self._wishes: list[Incoming[Message]] = []
        self._wished = 0.0
        self._contributors = Contributors(settings, self._reply) if settings.join else None
        self._service: PredictionService | None = None
        self._pool = serving.pool
        self._wire = Wire(network.keys, known=network.peers)
        try:
            allowed = {name: key for name, key in network.peers.items() if name in settings.clients}
            self._hub: Hub[Message] = Hub(self._wire, network.address, allowed, server_codec)
            self._dealer: Link[Message] = Link(
                self._wire,
                network.dealer,
                peer=DEALER,
                peer_key=network.peers[DEALER],
                codec=dealer_codec,
                timeout=network.timeouts.timeout,
                others=network.peers,
            )
        except BaseException:
            self._wire.close()
            raise
        self.address = self._hub.address
        try:
            self._run = ServerRun(
                nn.Identity() if tail is None else tail,
                cut=cut,
                settings=settings,
                timeouts=network.timeouts,
                checkpoints=None if storage.checkpoints is None else Checkpoints(storage.checkpoints),
                seed=runtime.seed,
                report=with_traffic(runtime.report, self._bytes),
            )
        except BaseException:
            self._close()
            raise

    def serve(self, *, on_trained: Callable[[], None] = lambda: None) -> None:
        """Run the training, then answer predictions until every client has left (or `stop`, with `stay`).

        Args:
            on_trained: called once when the last round is over and the tail is final, before predictions are answered.

        Raises:
            PartyTimeoutError: too few clients came, or are left; the others are told.
        """
        self._report(Listening(SERVER, self.address))
        self._progress = time.monotonic()
        incoming: Incoming[Message] | None = None
        finished = self._run.finished
        try:
            self._ready_workers()
            while not self._stop.is_set() and not self._everybody_left():
                spin = incoming is not None
                incoming = self._hub.receive(0.2, spin=spin, spin_seconds=TRAINING_SPIN_SECONDS)
                if incoming is not None:
                    self._progress = time.monotonic()
                    self._answer(incoming)
                self._check_time()
                if self._run.finished and not finished:
                    # Before anything that may be waited for: from here on a tail that is lost cannot be made again.
                    finished = True
                    on_trained()
                self._keep_waiting()
        except RunFailed as failed:
            self._tell_all(failed.reason)
            raise failed.reason from failed.__cause__
        except SplitsecError as error:
            self._tell_all(error)
            raise
        except KeyboardInterrupt:
            # With checkpoints it may be started again, and clients go on with it.
            if self._run.finished or not self._keeps:
                self._tell_all(RefusedError("the server was interrupted"))
            raise
        except Exception:
            self._tell_all(RefusedError("the server failed; see its log"))
            raise
        finally:
            if self._pool is not None and self._serving.pool is None:
                self._pool.close()
            self._close()

    def save(self, path: Path) -> None:
        """Write the tail, with the record of the run that trained it, for `load_trained`.

        Args:
            path: of a safetensors file.

        Raises:
            ConfigError: it cannot be written, or clients give the model in parts.
        """
        if self.tail is None:
            raise ConfigError("the model is in the clients' hands; there is no tail to save")
        origin = origin_of(self.tail)
        save_segment(path, self.tail.state_dict(), role="tail", party=SERVER, cut=self.cut, origin=origin)

    def stop(self) -> None:
        """Let `serve` return; safe from any thread or signal handler."""
        self._stop.set()

    def _answer(self, incoming: Incoming[Message]) -> None:
        try:
            self._handle(incoming)
        except SplitsecError as error:
            self._hub.refuse(incoming.sender, error)
        except RunFailed:
            raise
        except Exception as error:
            # What one client sends must not end the run of the others, whatever torch thinks of it.
            log.error(
                "a message of %s failed: %r", incoming.sender.name, error, exc_info=log.isEnabledFor(logging.DEBUG)
            )
            self._hub.refuse(incoming.sender, RefusedError("the server could not handle the message; see its log"))

    def _reply(self, name: str, body: Message, tensors: NamedTensors = NO_TENSORS) -> None:
        self._hub.send(self._routes[name], body, tensors)

    def _deliver(self, out: Iterable[Outgoing]) -> None:
        """Send what the run says; what it asks the dealer is answered before anything else happens."""
        later: list[Iterable[Outgoing]] = []
        for outgoing in out:
            if outgoing.to != DEALER:
                self._reply(outgoing.to, outgoing.body, outgoing.tensors)
                continue
            try:
                body, tensors = self._ask_dealer(outgoing.body)
            except SplitsecError as error:
                later.append(self._run.dealer_failed(error, now=time.monotonic()))
            else:
                later.append(self._run.handle(DEALER, body, tensors, now=time.monotonic()))
        # In the order in which they were said.
        for answers in later:
            self._deliver(answers)

    def _ask_dealer(self, body: Message) -> tuple[Message, NamedTensors]:
        """Ask the dealer, and wait for it as long as for clients to come: it may be started again meanwhile."""
        patience = max(self._network.timeouts.timeout, self._network.timeouts.join_timeout)
        return self._dealer.request_again(body, patience=patience, meanwhile=self._keep_waiting)

    def _bytes(self) -> tuple[int, int]:
        traffic = list(self._hub.traffic.values())
        return sum(one.bytes_sent for one in traffic), sum(one.bytes_received for one in traffic)

    def _close(self) -> None:
        self._dealer.close()
        self._hub.close()
        self._wire.close()

    def _tell_all(self, error: SplitsecError) -> None:
        for sender in self._routes.values():
            self._hub.send(sender, Refused(reason=str(error), error=type(error).__name__))

    def _keep_waiting(self) -> None:
        """Tell those who wait for others, every few seconds, that they are not forgotten."""
        if time.monotonic() - self._told < min(5.0, self._network.timeouts.timeout / 4):
            return
        self._told = time.monotonic()
        served = [] if self._contributors is None else self._contributors.names
        served = served + [wish.sender.name for wish in self._wishes]
        for name in served if self._run.finished else self._run.waiting:
            if name not in self._left:
                self._reply(name, Waiting())

    def _handle(self, incoming: Incoming[Message]) -> None:
        name = incoming.sender.name
        match incoming.body:
            case Half():
                if self._halves is None:
                    raise RefusedError("this server wants no parts of a model")
                self._halves.take(name, incoming.body, incoming.tensors["weights"])
                self._routes[name] = incoming.sender
                self._service = None
                self._hub.send(incoming.sender, Done())
                self._grant_wishes()
            case OpenSession() | Calibration() | Serve() if not self._run.finished:
                # Before its route is taken: that is where this client's training goes.
                raise RefusedError("the tail is still in training; open a session when the run is over")
            case OpenSession():
                self._routes[name] = incoming.sender
                self._left.discard(name)
                self._ended.discard(name)
                self._open(incoming, incoming.body)
            case Calibration():
                self._routes[name] = incoming.sender
                self._calibrate(name, incoming.tensors["activations"])
            case Serve():
                self._check_belongs(name, incoming.body)
                self._contributing().serve(name, incoming.body)
                self._routes[name] = incoming.sender
                self._grant_wishes()
            case Ask():
                self._contributing().ask(name, incoming.body)
            case Leave():
                self._left.add(name)
                self._hub.send(incoming.sender, Done())
                if not self._run.finished:
                    self._deliver(self._run.gone(name, now=time.monotonic()))
                self._end_contributions()
            case Hello():
                before = self._routes.get(name)
                self._refuse_twin(incoming.sender, before)
                self._routes[name] = incoming.sender
                self._ended.discard(name)
                try:
                    self._train(incoming)
                except SplitsecError:
                    if before is not None:
                        self._routes[name] = before
                    raise
            case _ if self._routes.get(name, incoming.sender).route != incoming.sender.route:
                # Of a client's earlier life, which was started again and speaks from elsewhere; or of a second process
                # with its name and key, which was refused and must not end what the first one does.
                log.info("a late message of %s's earlier connection is left out", name)
            case GaveUp(reason):
                log.warning("%s %s", name, reason)
                self._vanished(name)
                self._train(incoming)
            case _:
                self._train(incoming)

    def _refuse_twin(self, sender: Sender, before: Sender | None) -> None:
        """Raise `RefusedError` for a client whose name and key another process uses that is still connected."""
        name = sender.name
        if before is None or before.route == sender.route or name in self._left:
            return
        if not self._hub.has_ended(before, Waiting()):
            raise RefusedError(
                f"another process with the name and the key of {name} is connected already: end one of the two, or "
                "give each client a name and a key of its own (splitsec keys); if it was this one's earlier start, "
                "on a machine that is cut off, try again in half a minute"
            )

    def _look_for_gone(self) -> None:
        """Wait no longer for clients whose process has ended without a word."""
        now = time.monotonic()
        if self._serving.rules.stay or not self._settings.epochs or now - self._looked < PROBE_SECONDS:
            return
        self._looked = now
        for name in set(self._settings.clients) - self._left - self._ended:
            route = self._routes.get(name)
            if route is not None and self._hub.is_there(route, Waiting()):
                self._missing_since.pop(name, None)
            elif now - self._missing_since.setdefault(name, now) > GONE_SECONDS:
                log.warning("%s is gone, and is not waited for any longer", name)
                self._vanished(name)

    def _vanished(self, name: str) -> None:
        """Wait no longer for a client that has ended before its time; it may come back as if it were new."""
        self._wishes = [wish for wish in self._wishes if wish.sender.name != name]
        self._ended.add(name)
        if self._run.finished:
            self._left.add(name)
            self._end_contributions()

    def _train(self, incoming: Incoming[Message]) -> None:
        began = time.monotonic()
        self._deliver(self._run.handle(incoming.sender.name, incoming.body, incoming.tensors, now=began))
        self._run.refresh(began, time.monotonic())
        self._ready_workers()

    def _grant_wishes(self) -> None:
        """Sessions that had to wait for others."""
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            self._answer(wish)

    def _open(self, incoming: Incoming[Message], wanted: OpenSession) -> None:
        name = incoming.sender.name
        contributors = self._contributors
        if contributors is not None and len(wanted.shape) != 2:
            raise MessageError(f"an activation to be joined has shape (rows, features), not {wanted.shape}")
        if self._run.finished:
            self._check_belongs(name, wanted)
        absent = contributors is not None and not contributors.ready(name)
        if absent or (self._halves is not None and self._halves.missing):
            self._wished = time.monotonic()
            # One a client: its latest.
            self._wishes = [wish for wish in self._wishes if wish.sender.name != name] + [incoming]
            return
        service = self._prediction_service()
        if contributors is None:
            try:
                self._reply(name, service.open(name, wanted)[0])
            except CalibrationNeededError:
                self._reply(name, NeedsCalibration())
            return
        shares = contributors.shares(name, wanted.shape[1])
        try:
            opened, port = service.open(name, wanted, join=self._settings.join or "", shares=shares)
        except CalibrationNeededError:
            raise RangeError(
                "the tail's weights guarantee no ranges, and activations of several clients cannot be measured on "
                "noise: give the server a calibration of joined activations"
            ) from None
        contributors.opened(name, opened, port)
        self._reply(name, opened)

    def _calibrate(self, name: str, activations: torch.Tensor) -> None:
        """Measure ranges on the activations that a client's front makes of noise."""
        if not 1 <= len(activations) <= MOST_CALIBRATION:
            raise MessageError(f"a calibration has from 1 to {MOST_CALIBRATION} activations")
        # Ranges of larger values would open more digits of the weights.
        check_range(activations, limit=DEFAULT_LIMIT, what="the calibration", why="what noise may become in a front")
        self._prediction_service().calibrate(name, activations)
        self._reply(name, Done())

    def _check_belongs(self, name: str, asked: OpenSession | Serve) -> None:
        if self.tail is not None:
            front = Origin(mark=asked.mark, run=asked.run, rounds=asked.rounds)
            check_belongs(name, front, origin_of(self.tail))

    def _contributing(self) -> Contributors:
        if self._contributors is None:
            raise MessageError("no activations are joined in this run")
        return self._contributors

    def _end_contributions(self) -> None:
        """When only those are left who contribute to others' predictions, nobody asks any more."""
        if self._contributors is None:
            return
        names = self._contributors.names
        if all(name in self._left or name in names for name in self._settings.clients):
            for name in set(names) - self._left:
                self._reply(name, Done())

    def _ready_workers(self) -> None:
        """Start what workers come from: it takes seconds, so during the last round rather than after it."""
        run = self._run
        if self._pool is None and (run.finished or (run.number is not None and run.number + 1 >= run.rounds)):
            self._pool = WorkerPool()

    def _prediction_service(self) -> PredictionService:
        if not self._run.finished:
            raise RefusedError("the tail is still in training; open a session when the run is over")
        if self._service is None:
            assert self._pool is not None
            self._service = PredictionService(
                Programs(
                    self.tail,
                    calibration=self._serving.calibration,
                    answer_bits=self._serving.rules.answer_bits,
                    whole=None if self._halves is None else self._halves.whole(),
                ),
                pool=self._pool,
                clients=self._settings.clients,
                network=SessionNetwork(
                    self._network.keys,
                    self._network.peers,
                    dealer=self._network.dealer,
                    host=urlsplit(self.address).hostname or "127.0.0.1",
                    timeout=self._network.timeouts.timeout,
                ),
                processors=self._processors,
                rules=self._serving.rules,
            )
        return self._service

    def _everybody_left(self) -> bool:
        left = self._left | self._ended if self._run.finished else self._left
        return not self._serving.rules.stay and left >= set(self._settings.clients)

    def _check_time(self) -> None:
        now = time.monotonic()
        active = self._service is not None and self._service.active
        if not self._run.finished:
            self._deliver(self._run.tick(now))
            return
        self._look_for_gone()
        if self._halves is not None and self._halves.missing:
            # Clients train by themselves, silently and as long as they like; but somebody may wait for the others.
            if not self._wishes or now - self._wished < self._network.timeouts.join_timeout:
                return
            names = ", ".join(self._halves.missing)
            raise PartyTimeoutError(
                f"{names} gave no part of the model within {self._network.timeouts.join_timeout:g} s"
            )
        elif not self._serving.rules.stay and now - self._progress > IDLE_SECONDS and not active:
            missing = sorted(set(self._settings.clients) - self._left)
            raise PartyTimeoutError(f"{', '.join(missing)} neither asked nor left for {IDLE_SECONDS:g} s")
