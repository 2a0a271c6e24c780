"""The server: runs the training, owns the tail, combines fronts it cannot read, and answers encrypted predictions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from torch import fx, nn

from splitsec.cut import INPUT, cut_names, is_u, origin_of
from splitsec.cut.belonging import check_unchanged
from splitsec.cut.segment_files import save_segment
from splitsec.errors import (
    ConfigError,
    PartyTimeoutError,
    RefusedError,
    SplitsecError,
)
from splitsec.events import Listening, with_traffic
from splitsec.mpc.session.messages import Done
from splitsec.parties.messages import Leave, dealer_codec, server_codec
from splitsec.parties.roster import Roster
from splitsec.parties.server_predictions import ServerPredictions
from splitsec.parties.setup import Network, Runtime, Serving, Storage
from splitsec.party_names import DEALER, SERVER
from splitsec.prediction.messages import Ask, Calibration, Half, OpenSession, Serve
from splitsec.prediction.server.allowance import open_book
from splitsec.prediction.server.service import SessionNetwork
from splitsec.prediction.server.worker import IDLE_SECONDS
from splitsec.settings.answers import check_answer_rules
from splitsec.settings.run import RunSettings, check_run_settings
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.messages import GaveUp, Hello, Waiting
from splitsec.training.server.outbox import RunFailed
from splitsec.training.server.run import ServerRun
from splitsec.training.server.state import make_parts
from splitsec.transport import (
    TRAINING_SPIN_SECONDS,
    Hub,
    Incoming,
    Link,
    Message,
    NamedTensors,
    Wire,
)
from splitsec.transport.outgoing import Outgoing

log = logging.getLogger(__name__)


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
        self._report = runtime.report
        self._stop = threading.Event()
        self._keeps = storage.checkpoints is not None
        self._progress = self._told = time.monotonic()
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
        self._roster = Roster(self._hub, settings.clients)
        self._predictions = ServerPredictions(
            tail,
            settings=settings,
            serving=serving,
            roster=self._roster,
            sessions=SessionNetwork(
                network.keys,
                network.peers,
                dealer=network.dealer,
                host=urlsplit(self.address).hostname or "127.0.0.1",
                timeout=network.timeouts.timeout,
            ),
            processors=runtime.processors,
            again=self._answer,
        )
        try:
            self._run = ServerRun(
                make_parts(
                    nn.Identity() if tail is None else tail,
                    cut=cut,
                    settings=settings,
                    timeouts=network.timeouts,
                    checkpoints=None if storage.checkpoints is None else Checkpoints(storage.checkpoints),
                    seed=runtime.seed,
                    report=with_traffic(runtime.report, self._bytes),
                )
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
            while not self._stop.is_set() and not self._all_left():
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
            self._roster.refuse_all(failed.reason)
            raise failed.reason from failed.__cause__
        except SplitsecError as error:
            self._roster.refuse_all(error)
            raise
        except KeyboardInterrupt:
            # With checkpoints it may be started again, and clients go on with it.
            if self._run.finished or not self._keeps:
                self._roster.refuse_all(RefusedError("the server was interrupted"))
            raise
        except Exception:
            self._roster.refuse_all(RefusedError("the server failed; see its log"))
            raise
        finally:
            self._predictions.close()
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

    def _deliver(self, out: Iterable[Outgoing]) -> None:
        """Send what the run says; what it asks the dealer is answered before anything else happens."""
        later: list[Iterable[Outgoing]] = []
        for outgoing in out:
            if outgoing.to != DEALER:
                self._send(outgoing)
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

    def _send(self, outgoing: Outgoing) -> None:
        self._hub.send(self._roster.route(outgoing.to), outgoing.body, outgoing.tensors)

    def _ask_dealer(self, body: Message) -> tuple[Message, NamedTensors]:
        """Ask the dealer, and wait for it as long as for clients to come: it may be started again meanwhile."""
        patience = max(self._network.timeouts.timeout, self._network.timeouts.join_timeout)
        return self._dealer.request_again(body, patience=patience, meanwhile=self._keep_waiting)

    def _bytes(self) -> tuple[int, int]:
        traffic = list(self._hub.traffic.values())
        return sum(link.bytes_sent for link in traffic), sum(link.bytes_received for link in traffic)

    def _close(self) -> None:
        self._dealer.close()
        self._hub.close()
        self._wire.close()

    def _keep_waiting(self) -> None:
        """Tell those who wait for others, every few seconds, that they are not forgotten."""
        if time.monotonic() - self._told < min(5.0, self._network.timeouts.timeout / 4):
            return
        self._told = time.monotonic()
        for name in self._predictions.waiting if self._run.finished else self._run.waiting:
            if name not in self._roster.left:
                self._roster.send(name, Waiting())

    def _handle(self, incoming: Incoming[Message]) -> None:
        sender, roster = incoming.sender, self._roster
        match incoming.body:
            case Half() | OpenSession() | Calibration() | Serve() | Ask():
                self._predictions.handle(incoming, trained=self._run.finished)
            case Leave():
                roster.left.add(sender.name)
                self._hub.send(sender, Done())
                if not self._run.finished:
                    self._deliver(self._run.gone(sender.name, now=time.monotonic()))
                self._predictions.end_contributions()
            case Hello():
                self._greet(incoming)
            case _ if roster.is_earlier(sender):
                log.info("a late message of %s's earlier connection is left out", sender.name)
            case GaveUp(reason):
                log.warning("%s %s", sender.name, reason)
                self._vanished(sender.name)
                self._train(incoming)
            case _:
                self._train(incoming)

    def _greet(self, incoming: Incoming[Message]) -> None:
        sender, roster = incoming.sender, self._roster
        roster.check_twin(sender)
        before = roster.reached_at(sender)
        roster.ended.discard(sender.name)
        try:
            self._train(incoming)
        except SplitsecError:
            if before is not None:
                roster.reached_at(before)
            raise

    def _vanished(self, name: str) -> None:
        """Wait no longer for a client that has ended before its time; it may come back as if it were new."""
        self._predictions.forget(name)
        self._roster.ended.add(name)
        if self._run.finished:
            self._roster.left.add(name)
            self._predictions.end_contributions()

    def _train(self, incoming: Incoming[Message]) -> None:
        began = time.monotonic()
        self._deliver(self._run.handle(incoming.sender.name, incoming.body, incoming.tensors, now=began))
        self._run.refresh(began, time.monotonic())
        self._ready_workers()

    def _ready_workers(self) -> None:
        """Start what workers come from during the last round, rather than after it."""
        run = self._run
        if run.finished or (run.number is not None and run.number + 1 >= run.rounds):
            self._predictions.start_workers()

    def _all_left(self) -> bool:
        return not self._serving.rules.stay and self._roster.all_left(trained=self._run.finished)

    def _check_time(self) -> None:
        now, stay = time.monotonic(), self._serving.rules.stay
        if not self._run.finished:
            self._deliver(self._run.tick(now))
            return
        active = self._predictions.hear_workers()
        if not stay and self._settings.epochs:
            for name in self._roster.vanished():
                self._vanished(name)
        if self._predictions.parts_missing(self._network.timeouts.join_timeout):
            return
        if not stay and now - self._progress > IDLE_SECONDS and not active:
            missing = ", ".join(self._roster.present)
            raise PartyTimeoutError(f"{missing} neither asked nor left for {IDLE_SECONDS:g} s")
