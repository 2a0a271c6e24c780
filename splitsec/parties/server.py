"""The server: runs the schedule, owns the tail, combines fronts it cannot read, and answers encrypted predictions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import fx, nn

from splitsec.cut import INPUT, cut_names, is_u, origin_of
from splitsec.errors import (
    AuthenticationError,
    ConfigError,
    MessageError,
    PartyTimeoutError,
    RangeError,
    RefusedError,
    SplitsecError,
)
from splitsec.mpc.compiler import DEFAULT_LIMIT
from splitsec.mpc.messages import Done
from splitsec.mpc.ring import PRECISION_BITS, check_range
from splitsec.parties.allowance import AnswerRules, Answers
from splitsec.parties.contributing import Contributors
from splitsec.parties.door import check_belongs, check_unchanged
from splitsec.parties.events import Listening, Report, ignore
from splitsec.parties.halves import Halves
from splitsec.parties.names import DEALER, SERVER
from splitsec.parties.pool import WorkerPool
from splitsec.parties.programs import CalibrationNeeded, Programs
from splitsec.parties.rounds import Run, RunFailed
from splitsec.parties.serving import PredictionService
from splitsec.parties.worker import IDLE_SECONDS
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.messages import (
    Ask,
    Calibration,
    DealerBody,
    GaveUp,
    Half,
    Hello,
    Leave,
    NeedsCalibration,
    OpenSession,
    Serve,
    ServerBody,
    Waiting,
    dealer_codec,
    server_codec,
)
from splitsec.training.schedule import Schedule, check_schedule
from splitsec.training.segment_files import save_segment
from splitsec.transport import TRAINING_SPIN_SECONDS, Hub, Incoming, KeyPair, Link, Refused, Sender, Wire, expect_tensor

log = logging.getLogger(__name__)
# A client that has vanished after training may be started again; after so long it is not waited for.
GONE_SECONDS = 30.0
# Fractional bits of an answer unless the operator says otherwise: a logit to a thousandth.
ANSWER_BITS = 10
# Activations of noise on which ranges are measured.
MOST_CALIBRATION = 64
PROBE_SECONDS = 5.0


class Server:
    """The server of one run.

    Args:
        tail: the server's segment, `SplitModel(...).tail`; it is trained in place. None where clients give a model in
            parts.
        cut: the name of the cut; clients with another are refused.
        schedule: who takes part, for how many epochs, with which batch size and learning rate. With 0 epochs the
            tail is used as it is, for predictions only: see `load_trained`.
        keys: the server's key pair.
        peers: public keys of the dealer and the clients by name.
        address: where to listen, such as `tcp://127.0.0.1:5555`; port `*` takes a free one.
        dealer: the dealer's address.
        timeout: seconds that the others wait for a client; then it is dropped from the round, and named. With fewer
            clients left than the schedule's minimum the run ends.
        round_timeout: seconds after which a round goes on without those for whom others wait; the others have as long
            again. None for no limit.
        join_timeout: seconds to wait for all clients to come.
        checkpoints: a directory of the server's own; a run that was killed goes on from the last round that all its
            parties have finished.
        seed: of dropout and the like in the tail while training; None for a random one.
        stay: go on answering predictions when all clients have left.
        calibration: activations (N, ...) of no client, from which the bounds of a deep tail's values are measured;
            without them the bounds are computed from the weights.
        processors: those that prediction sessions may use, each keeping to one of them in turn; None leaves it to
            the kernel.
        predictions_per_client: rows that each client may have answered, over all its sessions and all starts of the
            server, since answers reveal weights; None for any number. The count is kept in `counts`.
        counts: a directory of the server's own for `predictions-per-client.json`.
        answers: `"label"` refuses sessions that open more than labels, which reveal far less.
        answer_bits: how many fractional bits of a result are opened, at most 16: each bit less doubles what whoever
            would compute weights from answers errs by. Below them is noise of the server's.
        session_ports: the ports on which prediction sessions listen, such as `40000-40100`; None for any free one.
        pool: where the workers of prediction sessions come from, if several servers of a process share one; whoever
            made it closes it.

    Raises:
        AddressError: the address cannot be bound.
        ConfigError: the schedule names clients without a key, or fewer than two; or with 0 epochs the tail's values
            have changed since its model was cut, see `SplitModel.mark`.

    Example:
        >>> split = SplitModel(model, cut="pool")  # doctest: +SKIP
        >>> server = Server(split.tail, cut=split.cut, schedule=Schedule(clients=("a", "b")), keys=keys, peers=peers,
        ...                 address="tcp://127.0.0.1:*", dealer=dealer_address)  # doctest: +SKIP
        >>> server.serve()  # doctest: +SKIP
    """

    def __init__(
        self,
        tail: fx.GraphModule | None,
        *,
        cut: str,
        schedule: Schedule,
        keys: KeyPair,
        peers: Mapping[str, bytes],
        address: str,
        dealer: str,
        timeout: float = 60.0,
        round_timeout: float | None = None,
        join_timeout: float = 120.0,
        checkpoints: Path | None = None,
        seed: int | None = None,
        stay: bool = False,
        calibration: torch.Tensor | None = None,
        processors: Sequence[int] | None = None,
        predictions_per_client: int | None = None,
        counts: Path | None = None,
        answers: Answers = "any",
        answer_bits: int = ANSWER_BITS,
        session_ports: str | None = None,
        pool: WorkerPool | None = None,
        report: Report = ignore,
    ) -> None:
        _check_schedule(schedule, peers)
        if cut_names(cut)[0] == INPUT and schedule.epochs:
            raise ConfigError("a cut at the input would train on the clients' inputs in plain; choose a later cut")
        self._rules = AnswerRules.checked(
            answers=answers,
            predictions=predictions_per_client,
            directory=counts,
            ports=session_ports,
            labels=tail is not None and not is_u(cut),
        )
        if tail is not None and not schedule.epochs:
            check_unchanged([tail], "tail")
        # A count that cannot be read or written is to be known before the run, not after it.
        self._rules.book()
        self.tail = tail
        self.cut = cut
        self._schedule = schedule
        self._keys = keys
        self._peers = dict(peers)
        self._dealer_address = dealer
        self._timeout = timeout
        self._join_timeout = join_timeout
        self._stay = stay
        self._calibration = calibration
        if not 0 <= answer_bits <= PRECISION_BITS:
            raise ConfigError(f"answer_bits must lie between 0 and {PRECISION_BITS}, not {answer_bits}")
        self._answer_bits = answer_bits
        self._processors = processors
        self._report = report
        self._stop = threading.Event()
        self._routes: dict[str, Sender] = {}
        self._left: set[str] = set()
        # Who has said in training that it ends, and has not come back.
        self._ended: set[str] = set()
        self._looked = 0.0
        self._missing_since: dict[str, float] = {}
        self._keeps = checkpoints is not None
        self._progress = self._told = time.monotonic()
        self._halves = Halves(schedule) if schedule.halves else None
        # Sessions that wait for other clients, and since when.
        self._wishes: list[Incoming[ServerBody]] = []
        self._wished = 0.0
        self._contributors = Contributors(schedule, self._reply) if schedule.join else None
        self._service: PredictionService | None = None
        self._pool = pool
        self._own_pool = pool is None
        self._wire = Wire(keys, known=self._peers)
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
                others=peers,
            )
        except BaseException:
            self._wire.close()
            raise
        self.address = self._hub.address
        try:
            self._run = Run(
                nn.Identity() if tail is None else tail,
                cut=cut,
                schedule=schedule,
                send=self._reply,
                ask_dealer=self._ask_dealer,
                report=report,
                traffic=self._bytes,
                timeout=timeout,
                round_timeout=round_timeout,
                join_timeout=join_timeout,
                checkpoints=None if checkpoints is None else Checkpoints(checkpoints),
                seed=seed,
            )
        except BaseException:
            self._close()
            raise

    def serve(self, *, on_trained: Callable[[], None] = lambda: None) -> None:
        """Run the schedule, then answer predictions until every client has left (or `stop`, with `stay`).

        Args:
            on_trained: called once when the last round is over and the tail is final, before predictions are answered.

        Raises:
            PartyTimeoutError: too few clients came, or are left; the others are told.
        """
        self._report(Listening(SERVER, self.address))
        self._progress = time.monotonic()
        incoming: Incoming[ServerBody] | None = None
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
            if self._pool is not None and self._own_pool:
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

    def _answer(self, incoming: Incoming[ServerBody]) -> None:
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

    def _reply(self, name: str, body: ServerBody, tensors: Sequence[torch.Tensor]) -> None:
        self._hub.send(self._routes[name], body, tensors)

    def _ask_dealer(self, body: DealerBody) -> tuple[DealerBody, list[torch.Tensor]]:
        """Ask the dealer, and wait for it as long as for clients to come: it may be started again meanwhile."""
        patience = max(self._timeout, self._join_timeout)
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
        if time.monotonic() - self._told < min(5.0, self._timeout / 4):
            return
        self._told = time.monotonic()
        served = [] if self._contributors is None else self._contributors.names
        served = served + [wish.sender.name for wish in self._wishes]
        for name in served if self._run.finished else self._run.waiting:
            if name not in self._left:
                self._reply(name, Waiting(), [])

    def _handle(self, incoming: Incoming[ServerBody]) -> None:
        name = incoming.sender.name
        match incoming.body:
            case Half():
                if self._halves is None:
                    raise RefusedError("this server wants no parts of a model")
                self._halves.take(name, incoming.body, incoming.tensors)
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
                self._calibrate(name, incoming.tensors)
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
                    self._run.gone(name, now=time.monotonic())
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
        if self._hub.is_there(before, Waiting()):
            raise RefusedError(
                f"another process with the name and the key of {name} is connected already: end one of the two, or "
                "give each client a name and a key of its own (splitsec keys); if it was this one's earlier start, "
                "on a machine that is cut off, try again in half a minute"
            )

    def _look_for_gone(self) -> None:
        """Wait no longer for clients whose process has ended without a word."""
        now = time.monotonic()
        if self._stay or not self._schedule.epochs or now - self._looked < PROBE_SECONDS:
            return
        self._looked = now
        for name in set(self._schedule.clients) - self._left - self._ended:
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

    def _train(self, incoming: Incoming[ServerBody]) -> None:
        began = time.monotonic()
        self._run.take(incoming.sender.name, incoming.body, incoming.tensors, now=began)
        self._run.refresh(began, time.monotonic())
        self._ready_workers()

    def _grant_wishes(self) -> None:
        """Sessions that had to wait for others."""
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            self._answer(wish)

    def _open(self, incoming: Incoming[ServerBody], wanted: OpenSession) -> None:
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
                self._reply(name, service.open(name, wanted)[0], [])
            except CalibrationNeeded:
                self._reply(name, NeedsCalibration(), [])
            return
        shares = contributors.shares(name, wanted.shape[1])
        try:
            opened, port = service.open(name, wanted, join=self._schedule.join or "", shares=shares)
        except CalibrationNeeded:
            raise RangeError(
                "the tail's weights guarantee no ranges, and activations of several clients cannot be measured on "
                "noise: give the server a calibration of joined activations"
            ) from None
        contributors.opened(name, opened, port)
        self._reply(name, opened, [])

    def _calibrate(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Measure ranges on the activations that a client's front makes of noise."""
        if len(tensors) != 1 or not 1 <= len(tensors[0]) <= MOST_CALIBRATION:
            raise MessageError(f"a calibration has from 1 to {MOST_CALIBRATION} activations")
        expect_tensor(tensors[0], what="the calibration", dtype=torch.float32, shape=[None] * tensors[0].dim())
        # Ranges of larger values would open more digits of the weights.
        check_range(tensors[0], limit=DEFAULT_LIMIT, what="the calibration", why="what noise may become in a front")
        self._prediction_service().calibrate(name, tensors[0])
        self._reply(name, Done(), [])

    def _check_belongs(self, name: str, asked: OpenSession | Serve) -> None:
        if self.tail is not None:
            check_belongs(name, asked, origin_of(self.tail))

    def _contributing(self) -> Contributors:
        if self._contributors is None:
            raise MessageError("no activations are joined in this run")
        return self._contributors

    def _end_contributions(self) -> None:
        """When only those are left who contribute to others' predictions, nobody asks any more."""
        if self._contributors is None:
            return
        names = self._contributors.names
        if all(name in self._left or name in names for name in self._schedule.clients):
            for name in set(names) - self._left:
                self._reply(name, Done(), [])

    def _ready_workers(self) -> None:
        """Start what workers come from: it takes seconds, so during the last round rather than after it."""
        run = self._run
        if self._pool is None and (run.finished or (run.round is not None and run.round + 1 >= run.rounds)):
            self._pool = WorkerPool()

    def _prediction_service(self) -> PredictionService:
        if not self._run.finished:
            raise RefusedError("the tail is still in training; open a session when the run is over")
        if self._service is None:
            assert self._pool is not None
            self._service = PredictionService(
                Programs(
                    self.tail,
                    calibration=self._calibration,
                    answer_bits=self._answer_bits,
                    given=None if self._halves is None else self._halves.whole(),
                ),
                pool=self._pool,
                clients=self._schedule.clients,
                keys=self._keys,
                processors=self._processors,
                peers=self._peers,
                dealer_address=self._dealer_address,
                host=urlsplit(self.address).hostname or "127.0.0.1",
                timeout=self._timeout,
                rules=self._rules,
            )
        return self._service

    def _everybody_left(self) -> bool:
        left = self._left | self._ended if self._run.finished else self._left
        return not self._stay and left >= set(self._schedule.clients)

    def _check_time(self) -> None:
        now = time.monotonic()
        active = self._service is not None and self._service.active
        if not self._run.finished:
            self._run.tick(now)
            return
        self._look_for_gone()
        if self._halves is not None and self._halves.missing:
            # Clients train by themselves, silently and as long as they like; but somebody may wait for the others.
            if not self._wishes or now - self._wished < self._join_timeout:
                return
            names = ", ".join(self._halves.missing)
            raise PartyTimeoutError(f"{names} gave no part of the model within {self._join_timeout:g} s")
        elif not self._stay and now - self._progress > IDLE_SECONDS and not active:
            missing = sorted(set(self._schedule.clients) - self._left)
            raise PartyTimeoutError(f"{', '.join(missing)} neither asked nor left for {IDLE_SECONDS:g} s")


def _check_schedule(schedule: Schedule, peers: Mapping[str, bytes]) -> None:
    check_schedule(schedule)
    missing = [name for name in (*schedule.clients, DEALER) if name not in peers]
    if missing:
        raise AuthenticationError(f"no public key of {', '.join(missing)}; put NAME.key into the key directory")
