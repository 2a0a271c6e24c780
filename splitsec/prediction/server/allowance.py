"""The number of predictions that a server's operator allows each client.

Every answer says something about the weights: as many predictions with logits as a layer has inputs can give that layer
away. So a client's predictions can be counted against a budget, by rows; a row of zeros counts as well. The count is on
the disk before an answer is computed, and outlives the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from splitsec.errors import BudgetError, ConfigError, RefusedError, first_line
from splitsec.files import whole_file
from splitsec.settings.answers import AnswerRules

FILE = "predictions-per-client.json"
# How many queries are set aside at once: a hundredth of what is left, so that the last ones are counted one by one.
MOST_AHEAD = 64
TURN_SECONDS = 5.0
_decoder = msgspec.json.Decoder(dict[str, int])


def open_book(rules: AnswerRules) -> PredictionBook | None:
    """Open the count of predictions; None where they are not counted."""
    if rules.predictions_per_client is None or rules.directory is None:
        return None
    return PredictionBook(rules.directory, rules.predictions_per_client)


class PredictionBook:
    """Count of the predictions that each client has had; all processes of a server share its file, and take turns.

    Raises:
        ConfigError: the file cannot be read or written.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.limit = limit
        self._path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with self._turn() as counts:
                self._write(counts)
        except (OSError, RefusedError) as error:
            raise ConfigError(f"cannot keep the count of predictions in {self._path}: {first_line(error)}") from None

    def left(self, client: str) -> int:
        """Return how many predictions a client may still have, without those that its open sessions have set aside."""
        return max(0, self.limit - self._read().get(client, 0))

    def check(self, client: str, rows: int) -> int:
        """Return how many a client has left; raises `BudgetError` if these are fewer than `rows`."""
        left = self.left(client)
        if left >= rows:
            return left
        if not left:
            raise BudgetError(
                f"client '{client}' has had its {self.limit:,} predictions; the server's operator sets how many "
                "(predictions_per_client)"
            )
        raise BudgetError(
            f"client '{client}' has {left:,} of its {self.limit:,} predictions left, and asked for {rows:,} at once; "
            "take a smaller batch"
        )

    def set_aside(self, client: str, rows: int) -> int:
        """Count several queries of `rows` rows, at least one, before they are answered; return how many rows these are.

        Raises:
            BudgetError: not even one query is left.
            RefusedError: the file cannot be written.
        """
        with self._turn() as counts:
            queries = min(MOST_AHEAD, max(1, self.check(client, rows) // rows // 100))
            self._write(counts | {client: counts.get(client, 0) + queries * rows})
        return queries * rows

    def give_back(self, client: str, rows: int) -> None:
        """Take rows back that were set aside and never answered."""
        if rows:
            with self._turn() as counts:
                self._write(counts | {client: max(0, counts.get(client, 0) - rows)})

    def _read(self) -> dict[str, int]:
        try:
            return _decoder.decode(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise ConfigError(
                f"cannot read how many predictions clients have had from {self._path} ({first_line(error)}); restore "
                "the file, or remove it to count from zero"
            ) from None

    def _write(self, counts: dict[str, int]) -> None:
        try:
            with whole_file(self._path) as partial:
                partial.write_bytes(msgspec.json.format(msgspec.json.encode(counts)) + b"\n")
        except OSError as error:
            raise RefusedError(f"the server cannot write down its count of predictions: {error.strerror}") from error

    @contextlib.contextmanager
    def _turn(self) -> Iterator[dict[str, int]]:
        """Yield the counts by client, while no other process changes them."""
        handle = os.open(self._path.parent, os.O_RDONLY)
        try:
            deadline = time.monotonic() + TURN_SECONDS
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise RefusedError("another process holds the server's count of predictions") from None
                    time.sleep(0.005)
            yield self._read()
        finally:
            os.close(handle)


class Meter:
    """Count of one session's predictions against its client's budget, if there is one.

    Args:
        rows: of a query.
    """

    def __init__(self, book: PredictionBook | None, client: str, rows: int) -> None:
        self._book = book
        self._client = client
        self._rows = rows
        self._aside = 0

    def count(self) -> None:
        """Count a query, before it is answered; raises `BudgetError` where none is left."""
        if self._book is not None:
            if not self._aside:
                self._aside = self._book.set_aside(self._client, self._rows)
            self._aside -= self._rows

    def close(self) -> None:
        """Give unused rows back."""
        if self._book is not None:
            self._book.give_back(self._client, self._aside)
            self._aside = 0


def batches(rows: int, size: int) -> int:
    """Return how many rows are counted for `rows` that are asked in whole batches of `size`."""
    return math.ceil(rows / size) * size
