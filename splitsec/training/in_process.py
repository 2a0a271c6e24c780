"""The network of a run whose parties are in one process: for simulations, audits and tests.

Nothing is sent, so nothing is encrypted; the parties' own code runs, and masks, rounds and sums are those of separate
processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from splitsec.errors import RestartedError, SplitsecError
from splitsec.party_names import DEALER, SERVER
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.client.run import ClientRun
from splitsec.training.messages import Hello
from splitsec.training.server.run import ServerRun
from splitsec.transport import Message, NamedTensors, Refused
from splitsec.transport.codec import error_from
from splitsec.transport.outgoing import Outgoing


@dataclass(frozen=True)
class Letter:
    """A message on its way between a client and the server."""

    client: str
    body: Message
    tensors: NamedTensors = field(repr=False)


class InProcessNetwork:
    """Keep the messages between a run's server and clients in two queues, until they are delivered.

    Messages of one client arrive in the order in which they were sent. The dealer answers at once.

    Args:
        server: the server's half of the run.
        book: the dealer's half.

    Attributes:
        clients: the clients' halves, by name, from `start` on.
        now: the server's clock in seconds.
    """

    def __init__(self, server: ServerRun, book: MaskBook) -> None:
        self.server = server
        self.book = book
        self.clients: dict[str, ClientRun] = {}
        self.now = 0.0
        self._to_server: deque[Letter] = deque()
        self._to_clients: deque[Letter] = deque()
        # Clients whose connection the server knows: what it sends to others is lost.
        self._connected: set[str] = set()

    @property
    def idle(self) -> bool:
        """Return whether no message is on its way."""
        return not self._to_server and not self._to_clients

    def start(self, name: str, client: ClientRun) -> None:
        """Start a client's process, or start it again: what was on its way to and from it is lost."""
        self._to_server = deque(letter for letter in self._to_server if letter.client != name)
        self._to_clients = deque(letter for letter in self._to_clients if letter.client != name)
        self._connected.discard(name)
        self.clients[name] = client
        self.send_from_client(name, client.begin())

    def take_for_server(self, client: str | None = None) -> Letter | None:
        """Take the next message for the server out of its queue, of one client or of any; None where there is none."""
        return _take(self._to_server, client)

    def take_for_client(self, client: str | None = None) -> Letter | None:
        """Take the next message for a client, or for any, out of its queue; None where there is none."""
        return _take(self._to_clients, client)

    def give_to_server(self, letter: Letter) -> None:
        """Deliver a message that was taken out of its queue, and send the answers."""
        if isinstance(letter.body, Hello):
            self._connected.add(letter.client)
        self.send_from_server(self.server.handle(letter.client, letter.body, letter.tensors, now=self.now))

    def give_to_client(self, letter: Letter) -> None:
        """Deliver a message that was taken out of its queue, and send the answers.

        Raises:
            SplitsecError: the message refuses the client, as a link raises it.
        """
        if isinstance(letter.body, Refused):
            raise error_from(letter.body, "server")
        self.send_from_client(letter.client, self.clients[letter.client].handle(letter.body, letter.tensors))

    def send_from_client(self, name: str, out: Iterable[Outgoing]) -> None:
        """Queue a client's messages for the server; the dealer answers its own at once."""
        for outgoing in out:
            if outgoing.to != DEALER:
                self._to_server.append(Letter(name, outgoing.body, outgoing.tensors))
                continue
            client = self.clients[name]
            try:
                answer = self.book.answer(name, outgoing.body)
            except RestartedError as error:
                self.send_from_client(name, client.dealer_failed(error))
            else:
                self.send_from_client(name, client.handle(*answer))

    def send_from_server(self, out: Iterable[Outgoing]) -> None:
        """Queue the server's messages for clients; the dealer answers its own once those before are queued."""
        answers: list[Iterable[Outgoing]] = []
        for outgoing in out:
            if outgoing.to == DEALER:
                answers.append(self._answer_of_dealer(outgoing.body))
            elif outgoing.to in self._connected:
                self._to_clients.append(Letter(outgoing.to, outgoing.body, outgoing.tensors))
        for answer in answers:
            self.send_from_server(answer)

    def ask_dealer(self, body: Message) -> tuple[Message, NamedTensors]:
        """Return the dealer's answer to the server."""
        return self.book.answer(SERVER, body)

    def _answer_of_dealer(self, body: Message) -> Iterable[Outgoing]:
        try:
            answer = self.ask_dealer(body)
        except SplitsecError as error:
            return self.server.dealer_failed(error, now=self.now)
        return self.server.handle(DEALER, *answer, now=self.now)


def _take(queue: deque[Letter], client: str | None) -> Letter | None:
    for index, letter in enumerate(queue):
        if client in (None, letter.client):
            del queue[index]
            return letter
    return None
