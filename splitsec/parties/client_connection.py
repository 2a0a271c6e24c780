"""A client's connections: to the server, to the dealer, and to the workers that its predictions run with."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

from splitsec.errors import PartyTimeoutError, RestartedError
from splitsec.parties.messages import Leave, dealer_codec, server_codec
from splitsec.parties.setup import Network
from splitsec.party_names import DEALER, SERVER
from splitsec.training.client.run import ClientRun
from splitsec.training.messages import Combined, GaveUp, Missed, Waiting
from splitsec.transport import TRAINING_SPIN_SECONDS, Link, Message, NamedTensors, Wire
from splitsec.transport.outgoing import Outgoing


class ClientConnection:
    """Links of one client; close it.

    Attributes:
        network: keys, addresses and timeouts.
        wire: the sockets' context.
        server: the link to the server.
        dealer: the link to the dealer.
    """

    def __init__(self, network: Network) -> None:
        network.check_peers(SERVER, DEALER)
        self.network = network
        self.wire = Wire(network.keys)
        try:
            self.server: Link[Message] = Link(
                self.wire,
                network.server,
                peer=SERVER,
                peer_key=network.peers[SERVER],
                codec=server_codec,
                timeout=network.timeouts.timeout,
                others=network.peers,
            )
            self.dealer = self.dealer_link()
        except BaseException:
            self.wire.close()
            raise

    def dealer_link(self) -> Link[Message]:
        """Return another link to the dealer."""
        network = self.network
        return Link(
            self.wire,
            network.dealer,
            peer=DEALER,
            peer_key=network.peers[DEALER],
            codec=dealer_codec,
            timeout=network.timeouts.timeout,
            others=network.peers,
        )

    def worker_address(self, port: int) -> str:
        """Return the address of a prediction session's socket at the server."""
        address = f"tcp://{urlsplit(self.network.server).hostname}:{port}"
        return address if self.network.reach is None else self.network.reach(address)

    def bytes(self) -> tuple[int, int]:
        """Return how many bytes have been sent to the server, and received from it."""
        return self.server.traffic.bytes_sent, self.server.traffic.bytes_received

    def deliver(self, run: ClientRun, out: Sequence[Outgoing]) -> None:
        """Send what a run says; what it asks the dealer is answered before anything else happens."""
        pending = deque(out)
        while pending:
            outgoing = pending.popleft()
            if outgoing.to != DEALER:
                self.server.send(outgoing.body, outgoing.tensors)
                continue
            try:
                answer = self.dealer.request_again(outgoing.body, patience=self.network.timeouts.join_timeout)
            except RestartedError as error:
                pending.extend(run.dealer_failed(error))
            else:
                pending.extend(run.handle(*answer))

    def next_message(self, *, connections: int, joined: bool) -> tuple[Message, NamedTensors]:
        """Return the server's next message in training.

        A server that has gone has as long to come back as at the beginning to come.

        Args:
            connections: how often the server had been connected when the run began.
            joined: whether it has welcomed this client.
        """
        receive = partial(self.server.receive, spin=True, spin_seconds=TRAINING_SPIN_SECONDS, connections=connections)
        timeouts = self.network.timeouts
        if not joined:
            return receive(timeouts.join_timeout)
        try:
            return receive(timeouts.timeout)
        except PartyTimeoutError:
            if not self.server.lost or timeouts.join_timeout <= timeouts.timeout:
                raise
            return receive(timeouts.join_timeout - timeouts.timeout)

    def answer(self, timeout: float | None = None) -> tuple[Message, NamedTensors]:
        """Return the server's next message that says more than that it waits for others, or is left from training."""
        while True:
            body, tensors = self.server.receive(timeout)
            if not isinstance(body, (Waiting, Missed, Combined)):
                return body, tensors

    def leave(self) -> None:
        """Tell the server that nothing more will come."""
        self.server.send(Leave())
        self.answer()

    def give_up(self, error: BaseException) -> None:
        """Tell the server that this client ends, so that nobody waits for it."""
        reason = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"gave up ({type(error).__name__})"
        # Not the error's own words, which may hold the client's values; and whatever goes wrong here is not the reason.
        with contextlib.suppress(Exception):
            # To a server that is not there nothing is left behind that closing would wait for.
            if self.server.connected:
                self.server.send(GaveUp(reason))

    def close(self) -> None:
        """Close all links."""
        self.server.close()
        self.dealer.close()
        self.wire.close()
