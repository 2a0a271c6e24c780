"""The client that holds some columns of a table of people; other clients hold other columns of the same people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch

from splitsec.data.columns import Columns
from splitsec.data.standardisation import Standardisation
from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.program.execute import Encoded
from splitsec.mpc.ring import encode
from splitsec.mpc.session.messages import Done
from splitsec.parties.client import Client
from splitsec.parties.predictions import Predictions
from splitsec.party_names import SERVER
from splitsec.prediction.client.session import ClientSession
from splitsec.prediction.joint_inputs import Masks, mask, put_together
from splitsec.prediction.messages import Ask, Contribute, Contribution, ContributionBody, Serve, contribution_codec
from splitsec.settings.query import Query
from splitsec.settings.run import RunSettings
from splitsec.training.client.greeting import Purpose
from splitsec.transport import Link


class ColumnsClient(Client):
    """A client of a vertical layout: after `train` or `align` it may ask for predictions, or contribute to others'.

    Unless `Columns.scaling` says otherwise `train` standardises each column by the rows for training; `standardisation`
    is what was done, and belongs to the trained front.

    Attributes:
        asks: whether it is the one that asks for predictions, which the server makes sure is one client; None where
            that is decided later.

    Example:
        >>> with ColumnsClient(model.fronts["bank"], cut="join", network=network) as client:
        ...     client.train(Columns.load(Path("bank.csv")))
        ...     print(client.predict_rows(range(client.training_rows, len(client.columns.ids))))  # doctest: +SKIP
    """

    asks: bool | None = None

    _trains = True

    @cached_property
    def _masks(self) -> Masks:
        # Of all that this client contributes: the seeds of its pairs outlive a call of `contribute`.
        return Masks()

    def align(self, columns: Columns) -> RunSettings:
        """Find the rows that all clients have, for predictions alone: the server's run has no epochs.

        Args:
            columns: of any people; `columns.scaling.given` is the `standardisation` that the front was trained with.
                Labels are not needed.

        Raises:
            ConfigError, RefusedError: the columns are not those of the front, the front is not trained, or the server
                trains.
        """
        self._trains = False
        try:
            return self.train(columns)
        finally:
            self._trains = True

    @property
    def _purpose(self) -> Purpose:
        return Purpose(trains=self._trains, asks=self.asks)

    @property
    def standardisation(self) -> Standardisation:
        """Return the scaling of the columns, for `Columns.scaling.given` where people come later."""
        scaling = self.columns.scaling.given
        assert scaling is not None
        return scaling

    def predict_rows(self, rows: Sequence[int], query: Query | None = None) -> Predictions:
        """Encrypted predictions for aligned rows, of which other clients hold other columns; see `columns`.

        The others must be in `contribute`. Neither they nor the server learn the results, and nobody another's columns.

        Args:
            rows: numbers of aligned rows; the server and the other clients learn which.
            query: as in `predict`.

        Returns:
            Results with the `ids` of these rows.
        """
        columns = self.columns
        if not rows or min(rows) < 0 or max(rows) >= len(columns.ids):
            raise MessageError(f"give numbers of aligned rows, from 0 to {len(columns.ids) - 1}")
        values = columns.values[torch.tensor(rows)]
        predictions = self._predictions.predict(values, query or Query(), shared=partial(self._joined, rows))
        return replace(predictions, ids=tuple(columns.ids[row] for row in rows))

    def contribute(self) -> int:
        """Give shares of this client's activation to the predictions that others ask for, until nobody asks any more.

        Returns:
            How many queries it has contributed to.
        """
        columns = self.columns
        width = self._segments.activation(columns.values[:1]).shape[1]
        masks, links, count = self._masks, dict[int, Link[ContributionBody]](), 0
        origin = self._segments.origin()
        self._connection.server.send(Serve(width, origin.mark, origin.run, origin.rounds))
        try:
            while True:
                answer, _ = self._connection.answer()
                if isinstance(answer, Done):
                    return count
                if not isinstance(answer, Contribute):
                    raise MessageError(f"the server sent {type(answer).__name__} to one that contributes")
                if not answer.rows or min(answer.rows) < 0 or max(answer.rows) >= len(columns.ids):
                    raise MessageError("the server asked for rows that are not aligned")
                masks.check(answer.session, answer.query)
                activation = self._segments.activation(columns.values[torch.tensor(answer.rows)])
                what = f"the activation of {self.name} at cut '{self._segments.cut}'"
                encoded = encode(activation, answer.precision, limit=answer.limit, what=what)
                pad = mask(self._pair_seed(answer.asker), answer.session, answer.query, self.name, encoded.shape)
                if answer.port not in links:
                    links[answer.port] = Link(
                        self._connection.wire,
                        self._connection.worker_address(answer.port),
                        peer=SERVER,
                        peer_key=self._connection.network.peers[SERVER],
                        codec=contribution_codec,
                        timeout=self._connection.network.timeouts.timeout,
                    )
                links[answer.port].send(Contribution(answer.query), {"masked": encoded - pad})
                count += 1
        finally:
            for link in links.values():
                link.close()

    @property
    def columns(self) -> Columns:
        """Return this client's columns of the rows that all clients have, in their common order, training rows first.

        Raises:
            ConfigError: no rows have been aligned; `train` does it.
        """
        if self._run is None or self._run.columns is None:
            raise ConfigError("no rows are aligned: train with columns first, or align those of people who come later")
        return self._run.columns

    @property
    def training_rows(self) -> int:
        """Return how many of the aligned rows were trained on; the others are held out."""
        return 0 if self._run is None else self._run.training_rows

    def _pair_seed(self, other: str) -> bytes:
        assert self._run is not None
        return self._run.pair_seed(other)

    def _joined(
        self, numbers: Sequence[int], session: ClientSession, activation: torch.Tensor, places: range
    ) -> Encoded:
        """Return this client's share of the joined activation, whose other shares go to the server's worker."""
        rows = [numbers[place] for place in places]
        padded = rows + rows[-1:] * (len(activation) - len(rows))
        self._connection.server.send(Ask(session.name, session.next_query, tuple(padded)))
        program = session.program
        parts = {
            share.client: mask(
                self._pair_seed(share.client),
                session.name,
                session.next_query,
                share.client,
                (len(activation), share.width),
            )
            for share in session.shares
            if share.client != self.name
        }
        # Who has labels alone has no features, so that the next client's begin at the same place.
        join = "sum" if len({(share.start, share.width) for share in session.shares}) == 1 else "concat"
        limit = program.limit / (1 if join == "concat" else len(session.shares))
        what = f"the activation at cut '{self._segments.cut}'"
        parts[self.name] = encode(activation, program.precision, limit=limit, what=what)
        return Encoded(put_together(session.shares, parts, join))
