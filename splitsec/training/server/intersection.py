"""Private set intersection at the server.

It passes points on until every client's have met all others, and says which are common to all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.training.intersection import common_places
from splitsec.training.messages import Aligned, Places, Points
from splitsec.transport.outgoing import Outgoing


class Aligner:
    """Passes points round the clients in their order; `rows` is set when all have found as many common rows.

    Args:
        clients: all clients of the run.
    """

    def __init__(self, clients: Sequence[str]) -> None:
        self.rows: int | None = None
        self._clients = clients
        self._met: dict[str, list[str]] = {}
        self._complete: dict[str, torch.Tensor] = {}
        self._found: dict[str, int] = {}

    def points(self, name: str, body: Points, points: torch.Tensor) -> list[Outgoing]:
        """Accept points from a client, its own or another's that it has multiplied; return what to pass on."""
        if body.owner not in self._clients:
            raise MessageError(f"points of {body.owner}, who is no client of this run")
        met = self._met.setdefault(body.owner, [])
        if name != self._next(body.owner):
            raise MessageError(f"the points of {body.owner} were not due from {name}")
        met.append(name)
        if len(met) < len(self._clients):
            return [Outgoing(self._next(body.owner), Points(body.owner), {"points": points})]
        self._complete[body.owner] = points
        if len(self._complete) < len(self._clients):
            return []
        complete, self._complete = self._complete, {}
        return [Outgoing(client, Places(), {"places": places}) for client, places in common_places(complete).items()]

    def aligned(self, name: str, body: Aligned) -> None:
        """Take a client's number of common rows.

        Raises:
            ConfigError: not all have found the same number.
        """
        self._found[name] = body.rows
        if len(set(self._found.values())) > 1:
            counts = ", ".join(f"{client} {rows}" for client, rows in self._found.items())
            raise ConfigError(f"the clients have found different numbers of common rows: {counts}")
        if len(self._found) == len(self._clients):
            self.rows = body.rows

    @property
    def missing(self) -> list[str]:
        """Return the clients that the others wait for."""
        late = {self._next(owner) for owner in self._clients if len(self._met.get(owner, [])) < len(self._clients)}
        return sorted(late or set(self._clients) - set(self._found))

    def _next(self, owner: str) -> str:
        start = self._clients.index(owner) if owner in self._clients else 0
        return self._clients[(start + len(self._met.get(owner, []))) % len(self._clients)]
