"""The client: owns its data and the front, trains with the server, and asks for encrypted predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import nn

from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.errors import SplitsecError
from splitsec.events import with_traffic
from splitsec.parties.client_connection import ClientConnection
from splitsec.parties.client_predictions import ClientPredictions
from splitsec.parties.client_segments import ClientSegments
from splitsec.parties.predictions import Predictions
from splitsec.parties.setup import Network, Runtime, Storage
from splitsec.prediction.client.session import ClientSession
from splitsec.settings.query import Query
from splitsec.settings.run import RunSettings
from splitsec.training.checkpoints import Checkpoints, MemoryCheckpoints
from splitsec.training.client.greeting import TRAINS, Purpose
from splitsec.training.client.run import ClientRun, Participation
from splitsec.training.messages import GreetAgain
from splitsec.transport import ReconnectedError

log = logging.getLogger(__name__)


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
        self._segments = ClientSegments(front, head, cut)
        self.name = network.keys.name
        self._report = (runtime or Runtime()).report
        self._run: ClientRun | None = None
        self._connection = ClientConnection(network)
        self._predictions = ClientPredictions(self._segments, self._connection, runtime or Runtime())

    @property
    def front(self) -> nn.Module:
        """Return the client's segment."""
        return self._segments.front

    @property
    def head(self) -> nn.Module | None:
        """Return the client's other segment, of a U."""
        return self._segments.head

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
            self._predictions.inputs = part.train_images.shape[1:], part.train_images.dtype
        segments = self._segments.modules
        begun = [{key: value.clone() for key, value in segment.state_dict().items()} for segment in segments]
        # In memory, so that a server that is started again need not find this client started again as well.
        storage = storage or Storage()
        kept = MemoryCheckpoints() if storage.checkpoints is None else Checkpoints(storage.checkpoints)
        cut, purpose = self._segments.cut, self._purpose
        make = partial(
            ClientRun,
            segments,
            part,
            Participation(self.name, cut, seed, repeatable, storage.epsilon_limit, purpose),
            checkpoints=kept,
            ledgers=storage.checkpoints if storage.ledgers is None else storage.ledgers,
            report=with_traffic(self._report, self._connection.bytes),
        )
        while True:
            run = self._run = make()
            try:
                self._learn(run)
            except ReconnectedError:
                # Whatever was on its way is lost, so begin as a client does that was started again.
                log.warning("the server or another client was started again: back to the beginning of the round")
                self._connection.server.renew()
                run.close()
                for segment, state in zip(segments, begun, strict=True):
                    segment.load_state_dict(state)
                continue
            except BaseException as error:
                # The others need not wait for this client.
                self._connection.give_up(error)
                raise
            assert run.welcome is not None
            return run.welcome.settings

    def _learn(self, run: ClientRun) -> None:
        """Take part in a run until it is over; raises `ReconnectedError` where the server has to be greeted anew."""
        connection = self._connection
        connections = connection.server.connections
        connection.deliver(run, run.begin())
        while not run.done:
            try:
                body, tensors = connection.next_message(connections=connections, joined=run.welcome is not None)
            except SplitsecError:
                if connection.server.connections > connections:
                    # A server that was started again refuses what was on its way to the one before it.
                    raise ReconnectedError from None
                raise
            if isinstance(body, GreetAgain):
                raise ReconnectedError
            connection.deliver(run, run.handle(body, tensors))

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
        return self._predictions.predict(images, query or Query())

    def session(self, shape: Sequence[int], query: Query | None = None) -> AbstractContextManager[ClientSession]:
        """Open a prediction session for activations of `shape`, batch dimension first.

        Args:
            query: what is revealed, and how; fewer queries are made ready ahead if memory does not hold them.
        """
        return self._predictions.session(shape, query or Query())

    def save(self, path: Path) -> None:
        """Write front and head, with the record of the run that trained them, for `load_trained`.

        Args:
            path: of a safetensors file.

        Raises:
            ConfigError: it cannot be written.
        """
        self._segments.save(path, party=self.name)

    def leave(self) -> None:
        """Tell the server that nothing more will come."""
        self._connection.leave()

    def close(self) -> None:
        """Close the client's connections."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._connection.give_up(error)
        self.close()
