"""The client that holds columns of people of whom other clients hold other columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.mpc.context import ComparisonKind
from splitsec.mpc.messages import Done
from splitsec.mpc.program import Reveal
from splitsec.mpc.ring import encode
from splitsec.mpc.run import Encoded
from splitsec.parties.asking import ClientSession
from splitsec.parties.client import Client, Predictions
from splitsec.parties.contributing import Masks, mask, put_together
from splitsec.parties.learning import Purpose
from splitsec.parties.names import SERVER
from splitsec.training.messages import Ask, Contribute, Contribution, ContributionBody, Serve, contribution_codec
from splitsec.training.schedule import Schedule
from splitsec.training.standardising import Standardisation
from splitsec.training.vertical import Columns
from splitsec.transport import Link


class ColumnsClient(Client):
    """A client of a vertical layout: after `train` or `align` it may ask for predictions, or contribute to others'.

    Unless `Columns.scaling` says otherwise `train` standardises each column by the rows for training; `standardisation`
    is what was done, and belongs to the trained front.

    Attributes:
        asks: whether it is the one that asks for predictions, which the server makes sure is one client; None where
            that is decided later.

    Example:
        >>> with ColumnsClient(model.fronts["bank"], cut="join", keys=keys, peers=peers, ...) as client:
        ...     client.train(Columns.load(Path("bank.csv")))
        ...     print(client.predict_rows(range(client.training_rows, len(client.columns.ids))))  # doctest: +SKIP
    """

    asks: bool | None = None

    _trains = True

    @cached_property
    def _masks(self) -> Masks:
        # Of all that this client contributes: the seeds of its pairs outlive a call of `contribute`.
        return Masks()

    def align(self, columns: Columns) -> Schedule:
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
        """What was done to the columns; for `Columns.scaling.given` when the front predicts people who come later."""
        given = self.columns.scaling.given
        assert given is not None
        return given

    def predict_rows(
        self,
        rows: Sequence[int],
        *,
        batch_size: int = 1,
        ahead: int = 1,
        reveal: Reveal = "logits",
        checked: bool = False,
        comparison: ComparisonKind = "tables",
    ) -> Predictions:
        """Encrypted predictions for aligned rows, of which other clients hold other columns; see `columns`.

        The others must be in `contribute`. Neither they nor the server learn the results, and nobody another's columns.

        Args:
            rows: numbers of aligned rows; the server and the other clients learn which.
            batch_size, ahead, reveal, checked, comparison: as in `predict`.

        Returns:
            Results with the `ids` of these rows.
        """
        columns = self.columns
        if not rows or min(rows) < 0 or max(rows) >= len(columns.ids):
            raise MessageError(f"give numbers of aligned rows, from 0 to {len(columns.ids) - 1}")
        values = columns.values[torch.tensor(rows)]
        predictions = self._predict(
            values, batch_size, ahead, reveal, checked, comparison, shared=partial(self._joined, rows)
        )
        return replace(predictions, ids=tuple(columns.ids[row] for row in rows))

    def contribute(self) -> int:
        """Give shares of this client's activation to the predictions that others ask for, until nobody asks any more.

        Returns:
            How many queries it has contributed to.
        """
        columns = self.columns
        width = self._activation(columns.values[:1]).shape[1]
        masks, links, count = self._masks, dict[int, Link[ContributionBody]](), 0
        origin = self._origin()
        self._server.send(Serve(width, origin.mark, origin.run, origin.rounds))
        try:
            while True:
                wanted, _ = self._answer()
                if isinstance(wanted, Done):
                    return count
                if not isinstance(wanted, Contribute):
                    raise MessageError(f"the server sent {type(wanted).__name__} to one that contributes")
                if not wanted.rows or min(wanted.rows) < 0 or max(wanted.rows) >= len(columns.ids):
                    raise MessageError("the server asked for rows that are not aligned")
                masks.check(wanted.session, wanted.query)
                activation = self._activation(columns.values[torch.tensor(wanted.rows)])
                what = f"the activation of {self.name} at cut '{self._cut}'"
                encoded = encode(activation, wanted.precision, limit=wanted.limit, what=what)
                pad = mask(self._pair_seed(wanted.asker), wanted.session, wanted.query, self.name, encoded.shape)
                if wanted.port not in links:
                    links[wanted.port] = Link(
                        self._wire,
                        self._worker_address(wanted.port),
                        peer=SERVER,
                        peer_key=self._peers[SERVER],
                        codec=contribution_codec,
                        timeout=self._timeout,
                    )
                links[wanted.port].send(Contribution(wanted.query), [encoded - pad])
                count += 1
        finally:
            for link in links.values():
                link.close()

    @property
    def columns(self) -> Columns:
        """This client's columns of the rows that all clients have, in everybody's order, those for training first.

        Raises:
            ConfigError: no rows have been aligned; `train` does it.
        """
        if self._learner is None or self._learner.columns is None:
            raise ConfigError("no rows are aligned: train with columns first, or align those of people who come later")
        return self._learner.columns

    @property
    def training_rows(self) -> int:
        """How many of the aligned rows were trained on; the others are held out."""
        return 0 if self._learner is None else self._learner.training_rows

    def _pair_seed(self, other: str) -> bytes:
        assert self._learner is not None
        return self._learner.pair_seed(other)

    def _joined(
        self, numbers: Sequence[int], session: ClientSession, activation: torch.Tensor, places: range
    ) -> Encoded:
        """This client's share of the joined activation, whose other shares go to the server's worker."""
        rows = [numbers[place] for place in places]
        padded = rows + rows[-1:] * (len(activation) - len(rows))
        self._server.send(Ask(session.name, session.next_query, tuple(padded)))
        program = session.program
        parts = {
            one.client: mask(
                self._pair_seed(one.client), session.name, session.next_query, one.client, (len(activation), one.width)
            )
            for one in session.shares
            if one.client != self.name
        }
        # Who has labels alone has no features, so that the next client's begin at the same place.
        join = "sum" if len({(share.start, share.width) for share in session.shares}) == 1 else "concat"
        limit = program.limit / (1 if join == "concat" else len(session.shares))
        what = f"the activation at cut '{self._cut}'"
        parts[self.name] = encode(activation, program.precision, limit=limit, what=what)
        return Encoded(put_together(session.shares, parts, join))
