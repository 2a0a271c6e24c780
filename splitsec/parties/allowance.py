"""What a server's operator allows clients to ask: answers of which kind, how many, and on which ports.

Every answer says something about the weights: as many predictions with logits as a layer has inputs can give that layer
away. So a client's predictions can be counted against a budget, by rows: an answer to a row of zeros is one as well.
The count is on the disk before an answer is computed, and outlives the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from splitsec.errors import BudgetError, ConfigError, RefusedError, first_line
from splitsec.files import whole_file

Answers: TypeAlias = Literal["any", "label"]
FILE = "predictions-per-client.json"
# So many queries are set aside at once: a hundredth of what is left, so that the last ones are counted one by one.
MOST_AHEAD = 64
TURN_SECONDS = 5.0
LAST_PORT = 65535
_decoder = msgspec.json.Decoder(dict[str, int])


@dataclass(frozen=True)
class AnswerRules:
    """What clients may ask of a server.

    Attributes:
        answers: `"label"` refuses sessions that open more than the label of each row.
        predictions: rows that each client may have answered, over all its sessions and all starts of the server; None
            for any number.
        directory: where `FILE` keeps how many it has had.
        ports: the first and the last that sessions may listen on; None for any.
    """

    answers: Answers = "any"
    predictions: int | None = None
    directory: Path | None = None
    ports: tuple[int, int] | None = None

    @staticmethod
    def checked(
        *, answers: Answers, predictions: int | None, directory: Path | None, ports: str | None, labels: bool
    ) -> AnswerRules:
        """The rules of these settings.

        Args:
            ports: such as `40000-40100`.
            labels: whether the server's tail ends with labels.

        Raises:
            ConfigError: names the setting at fault.
        """
        if answers not in ("any", "label"):
            raise ConfigError(f'answers = "{answers}": write "any" or "label"')
        if answers == "label" and not labels:
            raise ConfigError(
                'answers = "label" needs a tail of the server\'s own that ends with the classes: that of a U ends '
                "before them, and a model that clients give in parts answers with logits; leave it out"
            )
        if predictions is not None:
            if predictions < 1:
                raise ConfigError(f"predictions_per_client = {predictions}: write 1 or more, or leave it out")
            if directory is None:
                raise ConfigError(
                    "predictions_per_client needs a directory in which the count outlives the server: counts"
                )
        return AnswerRules(answers, predictions, directory, None if ports is None else _port_range(ports))

    def book(self) -> PredictionBook | None:
        """The count of predictions, None where they are not counted."""
        if self.predictions is None or self.directory is None:
            return None
        return PredictionBook(self.directory, self.predictions)


def _port_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    with contextlib.suppress(ValueError):
        ports = int(first), int(last if dash else first)
        if 1 <= ports[0] <= ports[1] <= LAST_PORT:
            return ports
    raise ConfigError(f'session_ports = "{text}": write the first and the last port, such as "40000-40100"')


class PredictionBook:
    """How many predictions each client has had; all processes of a server share its file, and take turns.

    Raises:
        ConfigError: the file cannot be read or written.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.limit = limit
        self._path = directory / FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with self._turn() as had:
                self._write(had)
        except (OSError, RefusedError) as error:
            raise ConfigError(f"cannot keep the count of predictions in {self._path}: {first_line(error)}") from None

    def left(self, client: str) -> int:
        """How many predictions a client may still have, those that its open sessions have set aside not counted."""
        return max(0, self.limit - self._read().get(client, 0))

    def check(self, client: str, rows: int) -> int:
        """How many a client has left; raises `BudgetError` if these are fewer than `rows`."""
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
        """Count several queries of `rows` rows before they are answered, at least one; how many rows were counted.

        Raises:
            BudgetError: not even one query is left.
            RefusedError: the file cannot be written.
        """
        with self._turn() as had:
            queries = min(MOST_AHEAD, max(1, self.check(client, rows) // rows // 100))
            self._write(had | {client: had.get(client, 0) + queries * rows})
        return queries * rows

    def give_back(self, client: str, rows: int) -> None:
        """Take back what was set aside and never answered."""
        if rows:
            with self._turn() as had:
                self._write(had | {client: max(0, had.get(client, 0) - rows)})

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

    def _write(self, had: dict[str, int]) -> None:
        try:
            with whole_file(self._path) as partial:
                partial.write_bytes(msgspec.json.format(msgspec.json.encode(had)) + b"\n")
        except OSError as error:
            raise RefusedError(f"the server cannot write down its count of predictions: {error.strerror}") from error

    @contextlib.contextmanager
    def _turn(self) -> Iterator[dict[str, int]]:
        """What clients have had, while no other process changes it."""
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
    """One session's predictions against its client's budget, if there is one.

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
        """Give back what was not used."""
        if self._book is not None:
            self._book.give_back(self._client, self._aside)
            self._aside = 0


def batches(rows: int, size: int) -> int:
    """How many rows that many take in whole batches of this size: as many as are counted."""
    return math.ceil(rows / size) * size
