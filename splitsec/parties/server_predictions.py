"""Encrypted predictions at the server: who may open a session, on which tail, and who has to wait for others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import fx

from splitsec.cut import Origin, origin_of
from splitsec.cut.belonging import check_belongs
from splitsec.errors import MessageError, PartyTimeoutError, RangeError, RefusedError
from splitsec.mpc.program.compile import DEFAULT_LIMIT
from splitsec.mpc.ring import check_range
from splitsec.mpc.session.messages import Done
from splitsec.parties.model_part_client import Halves
from splitsec.parties.roster import Roster
from splitsec.parties.setup import Serving
from splitsec.prediction.joint_inputs import Contributors
from splitsec.prediction.messages import Ask, Calibration, Half, NeedsCalibration, OpenSession, Serve
from splitsec.prediction.server.programs import CalibrationNeededError, Programs
from splitsec.prediction.server.service import PredictionService, SessionNetwork
from splitsec.prediction.server.worker_pool import WorkerPool
from splitsec.settings.run import RunSettings
from splitsec.transport import Incoming, Message

# Activations of noise on which ranges are measured.
MOST_CALIBRATION = 64


class ServerPredictions:
    """Answers what clients ask for predictions.

    Args:
        tail: the server's segment; None where clients give a model in parts.
        sessions: keys and addresses of the sessions' sockets.
        processors: those that sessions may use; None leaves it to the kernel.
        again: handles a message that had to wait, as if it had come now.
    """

    def __init__(
        self,
        tail: fx.GraphModule | None,
        *,
        settings: RunSettings,
        serving: Serving,
        roster: Roster,
        sessions: SessionNetwork,
        processors: Sequence[int] | None,
        again: Callable[[Incoming[Message]], None],
    ) -> None:
        self._tail = tail
        self._settings = settings
        self._serving = serving
        self._roster = roster
        self._sessions = sessions
        self._processors = processors
        self._again = again
        self._halves = Halves(settings) if settings.in_parts else None
        self._contributors = Contributors(settings, roster.send) if settings.join else None
        # Sessions that wait for other clients, and since when.
        self._wishes: list[Incoming[Message]] = []
        self._wished = 0.0
        self._service: PredictionService | None = None
        self._pool = serving.pool

    def handle(self, incoming: Incoming[Message], *, trained: bool) -> None:
        """Handle a message of predictions.

        Args:
            trained: whether the training is over, before which no session opens.

        Raises:
            SplitsecError: it is refused.
        """
        name, body, roster = incoming.sender.name, incoming.body, self._roster
        match body:
            case Half():
                self._take_half(incoming, body)
            case OpenSession() | Calibration() | Serve() if not trained:
                # Before its route is taken: that is where this client's training goes.
                raise RefusedError("the tail is still in training; open a session when the run is over")
            case OpenSession():
                roster.came_back(incoming.sender)
                self._open(incoming, body)
            case Calibration():
                roster.reached_at(incoming.sender)
                self._calibrate(name, incoming.tensors["activations"])
            case Serve():
                self._check_belongs(name, body)
                self._contributing().serve(name, body)
                roster.reached_at(incoming.sender)
                self._grant_wishes()
            case Ask():
                self._contributing().ask(name, body)
            case other:
                raise MessageError(f"{type(other).__name__} is no message of predictions")

    def forget(self, name: str) -> None:
        """Wait no longer for others on behalf of a client that has vanished."""
        self._wishes = [wish for wish in self._wishes if wish.sender.name != name]

    def end_contributions(self) -> None:
        """Tell clients that contribute to others' predictions when nobody else is left to ask."""
        if self._contributors is None:
            return
        names, left = self._contributors.names, self._roster.left
        if all(name in left or name in names for name in self._settings.clients):
            for name in set(names) - left:
                self._roster.send(name, Done())

    def start_workers(self) -> None:
        """Start the process that workers are forked from, which takes seconds, if it is not there."""
        if self._pool is None:
            self._pool = WorkerPool()

    def close(self) -> None:
        """End the workers, unless they are others' too."""
        if self._pool is not None and self._serving.pool is None:
            self._pool.close()

    @property
    def waiting(self) -> list[str]:
        """Return the clients that wait for others, or for others' queries."""
        contributing = [] if self._contributors is None else self._contributors.names
        return contributing + [wish.sender.name for wish in self._wishes]

    def hear_workers(self) -> bool:
        """Take what the sessions' workers report; return whether a session is still open."""
        return self._service is not None and self._service.hear_workers()

    def parts_missing(self, join_timeout: float) -> bool:
        """Return whether parts of the model are still to come.

        Raises:
            PartyTimeoutError: a client has waited for them for longer than `join_timeout` seconds.
        """
        if self._halves is None or not self._halves.missing:
            return False
        # Clients train by themselves, silently and as long as they like; but a client may wait for the others.
        if self._wishes and time.monotonic() - self._wished >= join_timeout:
            names = ", ".join(self._halves.missing)
            raise PartyTimeoutError(f"{names} gave no part of the model within {join_timeout:g} s")
        return True

    def _take_half(self, incoming: Incoming[Message], body: Half) -> None:
        if self._halves is None:
            raise RefusedError("this server wants no parts of a model")
        self._halves.take(incoming.sender.name, body, incoming.tensors["weights"])
        self._roster.reached_at(incoming.sender)
        self._service = None
        self._roster.send(incoming.sender.name, Done())
        self._grant_wishes()

    def _grant_wishes(self) -> None:
        """Handle those messages again that had to wait for other clients."""
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            self._again(wish)

    def _open(self, incoming: Incoming[Message], wanted: OpenSession) -> None:
        name, contributors = incoming.sender.name, self._contributors
        if contributors is not None and len(wanted.shape) != 2:
            raise MessageError(f"an activation to be joined has shape (rows, features), not {wanted.shape}")
        self._check_belongs(name, wanted)
        absent = contributors is not None and not contributors.ready(name)
        if absent or (self._halves is not None and self._halves.missing):
            self._wished = time.monotonic()
            # A client has one wish: its latest.
            self.forget(name)
            self._wishes.append(incoming)
            return
        service = self._prediction_service()
        if contributors is None:
            try:
                self._roster.send(name, service.open(name, wanted)[0])
            except CalibrationNeededError:
                self._roster.send(name, NeedsCalibration())
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
        self._roster.send(name, opened)

    def _calibrate(self, name: str, activations: torch.Tensor) -> None:
        """Measure ranges on the activations that a client's front makes of noise."""
        if not 1 <= len(activations) <= MOST_CALIBRATION:
            raise MessageError(f"a calibration has from 1 to {MOST_CALIBRATION} activations")
        # Ranges of larger values would open more digits of the weights.
        check_range(activations, limit=DEFAULT_LIMIT, what="the calibration", why="what noise may become in a front")
        self._prediction_service().calibrate(name, activations)
        self._roster.send(name, Done())

    def _check_belongs(self, name: str, asked: OpenSession | Serve) -> None:
        if self._tail is not None:
            front = Origin(mark=asked.mark, run=asked.run, rounds=asked.rounds)
            check_belongs(name, front, origin_of(self._tail))

    def _contributing(self) -> Contributors:
        if self._contributors is None:
            raise MessageError("no activations are joined in this run")
        return self._contributors

    def _prediction_service(self) -> PredictionService:
        if self._service is None:
            assert self._pool is not None
            programs = Programs(
                self._tail,
                calibration=self._serving.calibration,
                answer_bits=self._serving.rules.answer_bits,
                whole=None if self._halves is None else self._halves.whole(),
            )
            self._service = PredictionService(
                programs,
                pool=self._pool,
                clients=self._settings.clients,
                network=self._sessions,
                processors=self._processors,
                rules=self._serving.rules,
            )
        return self._service
