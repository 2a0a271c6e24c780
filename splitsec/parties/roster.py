"""The clients of a server: by which connection each is reached, and who has left, ended or vanished."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from splitsec.errors import RefusedError, SplitsecError
from splitsec.training.messages import Waiting
from splitsec.transport import NO_TENSORS, Hub, Message, NamedTensors, Refused, Sender

log = logging.getLogger(__name__)
# A client that has vanished after training may be started again; after so long it is not waited for.
GONE_SECONDS = 30.0
PROBE_SECONDS = 5.0


class Roster:
    """Knows where the clients are.

    Attributes:
        left: the clients that have said that they leave, or have vanished after training.
        ended: the clients that have said in training that they end, and have not come back.
    """

    def __init__(self, hub: Hub[Message], clients: Collection[str]) -> None:
        self._hub = hub
        self._clients = frozenset(clients)
        self._routes: dict[str, Sender] = {}
        self.left: set[str] = set()
        self.ended: set[str] = set()
        self._looked = 0.0
        self._missing_since: dict[str, float] = {}

    def send(self, name: str, body: Message, tensors: NamedTensors = NO_TENSORS) -> None:
        """Send a message to a client, where it was heard of last."""
        self._hub.send(self.route(name), body, tensors)

    def refuse_all(self, error: SplitsecError) -> None:
        """Send an error to every client that has ever come."""
        for sender in self._routes.values():
            self._hub.send(sender, Refused(reason=str(error), error=type(error).__name__))

    def route(self, name: str) -> Sender:
        """Return where a client that has come is reached."""
        return self._routes[name]

    def reached_at(self, sender: Sender) -> Sender | None:
        """Send a client's messages here from now on; return where they went before."""
        before = self._routes.get(sender.name)
        self._routes[sender.name] = sender
        return before

    def came_back(self, sender: Sender) -> None:
        """Count a client among those that are there, reached here."""
        self.reached_at(sender)
        self.left.discard(sender.name)
        self.ended.discard(sender.name)

    def is_earlier(self, sender: Sender) -> bool:
        """Return whether a message comes from another connection than the client's newest.

        It is of the client's earlier life, which was started again and speaks from elsewhere; or of a second process
        with its name and key, which was refused and must not end what the first one does.
        """
        route = self._routes.get(sender.name)
        return route is not None and route.route != sender.route

    def check_twin(self, sender: Sender) -> None:
        """Raise `RefusedError` for a client whose name and key another process uses that is still connected."""
        name, before = sender.name, self._routes.get(sender.name)
        if before is None or before.route == sender.route or name in self.left:
            return
        if not self._hub.has_ended(before, Waiting()):
            raise RefusedError(
                f"another process with the name and the key of {name} is connected already: end one of the two, or "
                "give each client a name and a key of its own (splitsec keys); if it was this one's earlier start, "
                "on a machine that is cut off, try again in half a minute"
            )

    def vanished(self) -> list[str]:
        """Look, every few seconds, which clients' processes have ended without a word, and return them."""
        now = time.monotonic()
        if now - self._looked < PROBE_SECONDS:
            return []
        self._looked = now
        vanished = []
        for name in self._clients - self.left - self.ended:
            route = self._routes.get(name)
            if route is not None and self._hub.is_there(route, Waiting()):
                self._missing_since.pop(name, None)
            elif now - self._missing_since.setdefault(name, now) > GONE_SECONDS:
                log.warning("%s is gone, and is not waited for any longer", name)
                vanished.append(name)
        return vanished

    def all_left(self, *, trained: bool) -> bool:
        """Return whether no client is left; those that ended in training count once it is over (`trained`)."""
        return (self.left | self.ended if trained else self.left) >= self._clients

    @property
    def present(self) -> list[str]:
        """Return the clients that have not left, in alphabetical order."""
        return sorted(self._clients - self.left)
