"""Private set intersection at the server: it passes points on until every client's have met all others, and says which
are common to all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.parties.steps import Send
from splitsec.training.alignment import POINT_BYTES, common_places
from splitsec.training.messages import Aligned, Places, Points
from splitsec.transport import expect_tensor


class Aligner:
    """Passes points round the clients in their order; `rows` is set when all have found as many common rows.

    Args:
        clients: all clients of the run.
        send: sends a message to one of them.
    """

    def __init__(self, clients: Sequence[str], send: Send) -> None:
        self.rows: int | None = None
        self._clients = clients
        self._send = send
        self._met: dict[str, list[str]] = {}
        self._complete: dict[str, torch.Tensor] = {}
        self._found: dict[str, int] = {}

    def points(self, name: str, body: Points, tensors: Sequence[torch.Tensor]) -> None:
        """Take points from a client, its own or another's that it has multiplied, and pass them on."""
        if len(tensors) != 1:
            raise MessageError("points come as one tensor")
        expect_tensor(tensors[0], what="the points", dtype=torch.uint8, shape=(None, POINT_BYTES))
        if body.owner not in self._clients:
            raise MessageError(f"points of {body.owner}, who is no client of this run")
        met = self._met.setdefault(body.owner, [])
        if name != self._next(body.owner):
            raise MessageError(f"the points of {body.owner} were not due from {name}")
        met.append(name)
        if len(met) < len(self._clients):
            self._send(self._next(body.owner), Points(body.owner), tensors)
            return
        self._complete[body.owner] = tensors[0]
        if len(self._complete) == len(self._clients):
            for client, places in common_places(self._complete).items():
                self._send(client, Places(), [places])
            self._complete = {}

    def aligned(self, name: str, body: Aligned) -> None:
        """Take a client's number of common rows.

        Raises:
            ConfigError: not all have found the same number.
        """
        self._found[name] = body.rows
        if len(set(self._found.values())) > 1:
            found = ", ".join(f"{client} {rows}" for client, rows in self._found.items())
            raise ConfigError(f"the clients have found different numbers of common rows: {found}")
        if len(self._found) == len(self._clients):
            self.rows = body.rows

    @property
    def missing(self) -> list[str]:
        """Whom the others wait for."""
        late = {self._next(owner) for owner in self._clients if len(self._met.get(owner, [])) < len(self._clients)}
        return sorted(late or set(self._clients) - set(self._found))

    def _next(self, owner: str) -> str:
        start = self._clients.index(owner) if owner in self._clients else 0
        return self._clients[(start + len(self._met.get(owner, []))) % len(self._clients)]
