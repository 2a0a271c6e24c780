"""Why a peer cannot be reached: nobody listens, another listens, or it holds another key than the one we know.

ZeroMQ tries again for ever and says nothing, which is right for a party that starts later and wrong for a mistake.
`Reaching` watches one connection and tells them apart: by its events, and where these leave a choice by a look at the
port, as the greeting of ZMTP 3.1 (rfc.zeromq.org/spec/37) has it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from typing import Literal, TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from splitsec.errors import AddressError, AuthenticationError, PartyTimeoutError, SplitsecError
from splitsec.transport.addresses import host_and_port
from splitsec.transport.keys import KeyPair, fingerprint

log = logging.getLogger(__name__)
EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
# A party that is just starting or ending may close one handshake; one with another key closes all of them.
MOST_FAILED = 6
FAILED_SECONDS = 1.0
PROBE_SECONDS = 1.0
# Signature, version 3.1, mechanism, whether it is the server, filler: 64 bytes.
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)

# What a look at a port finds.
Probed: TypeAlias = Literal["nobody", "no host", "no way", "silent", "closes", "foreign", "party"]
_REASONS: dict[Probed, str] = {
    "nobody": "nobody listens there: start it, or correct the address",
    "no way": "no way leads there: is the address right, and does no firewall stand between?",
    "closes": "every connection is closed at once: is it a gateway behind which nobody listens?",
    "silent": "what listens there takes connections and says nothing: is the port another program's?",
    "party": "a party listens there, but has not answered the handshake: is it overloaded?",
}


class Reaching:
    """Knowledge about the way to one peer.

    Args:
        connected: the socket, which is not used by another thread.
        others: public keys of other parties, to name the one that was found instead.
    """

    def __init__(
        self,
        connected: zmq.Socket[bytes],
        *,
        peer: str,
        address: str,
        peer_key: bytes,
        keys: KeyPair,
        others: Mapping[str, bytes] | None = None,
    ) -> None:
        self.monitor = connected.get_monitor_socket(EVENTS)
        self._connected = connected
        self._peer = peer
        self._address = address
        self._peer_key = peer_key
        self._keys = keys
        self._others = {name: key for name, key in (others or {}).items() if name != peer}
        # Connected now, and at any time before.
        self._there = self._was_there = False
        self.connections = 0
        self._failed = 0
        self._first_failed = 0.0
        self._told = False
        self._error: SplitsecError | None = None

    def look(self, left: float) -> None:
        """Take notice of the events of the connection.

        Args:
            left: seconds for which the caller will still wait, to be logged once if the peer is not there.

        Raises:
            AuthenticationError: the peer does not know our key, or holds another than we know.
            AddressError: what listens there is no party. An error of either kind stays: later calls raise it again.
        """
        while self._error is None and self.monitor.poll(0):
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            self._error = self._note(int(event["event"]), left)
        if self._error is not None:
            raise self._error

    @property
    def there(self) -> bool:
        """Return whether the peer is connected."""
        return self._there

    @property
    def lost(self) -> bool:
        """Return whether the peer was connected and is not any more."""
        return self._was_there and not self._there

    @property
    def failed(self) -> bool:
        """Return whether it is known that waiting is of no use."""
        return self._error is not None

    def silence(self, seconds: float) -> SplitsecError:
        """Return the error for a peer that has been silent for `seconds`, after a look at its port."""
        try:
            self.look(0)
        except SplitsecError as error:
            return error
        where = f"{self._peer} at {self._address}"
        waited = f"did not answer within {seconds:g} s"
        if self._there:
            return PartyTimeoutError(f"{where} {waited}, though it is connected: is it busy? Its log says what it does")
        probed = probe(self._address)
        if probed == "no host":
            return unknown_host(self._peer, self._address)
        if probed == "foreign":
            return self._foreign()
        if probed == "party" and self._failed:
            return self._other_key()
        ended = probed == "nobody" and self._was_there
        reason = "nobody listens there any more: has it ended?" if ended else _REASONS[probed]
        return PartyTimeoutError(f"{where} {waited}: {reason}")

    def close(self) -> None:
        """Watch no longer."""
        self._connected.disable_monitor()
        self.monitor.close(0)

    def _note(self, event: int, left: float) -> SplitsecError | None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._there = self._was_there = True
            self.connections += 1
            self._failed, self._told = 0, False
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return AuthenticationError(
                f"{self._peer} at {self._address} refused our key: it knows another one of {self._keys.name}, or "
                f"{self._keys.name} is not in its list; give it our current public key (fingerprint "
                f"{fingerprint(self._keys.public)}) and restart it"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return self._foreign()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._first_failed = self._first_failed if self._failed else time.monotonic()
            self._failed += 1
            if self._failed >= MOST_FAILED and time.monotonic() - self._first_failed >= FAILED_SECONDS:
                # Whether it is a party at all, or a gateway whose party is still to start.
                probed = probe(self._address)
                if probed == "party":
                    return self._other_key()
                self._failed = 0
                self._say(probed, left)
        elif event == zmq.EVENT_CONNECT_RETRIED and not self._failed:
            self._say("lost" if self._was_there else "", left)
        elif event == zmq.EVENT_DISCONNECTED:
            self._there = False
            if not self._was_there and not self._failed and probe(self._address) == "foreign":
                return self._foreign()
        return None

    def _say(self, state: str, left: float) -> None:
        """Log one line, once, that this party waits and why."""
        if self._told:
            return
        state = state if state not in ("", "lost") else f"{state}{probe(self._address)}"
        if state.endswith("party"):
            # It has come in the meantime.
            return
        self._told = True
        why = {
            "nobody": "nobody listens there yet",
            "lostnobody": "nobody listens there any more",
            "no host": "its host name is not known",
            "closes": "the connection is closed at once",
        }.get(state, "it cannot be reached yet")
        log.warning(
            "%s waits for %s at %s%s: %s",
            self._keys.name,
            self._peer,
            self._address,
            # A caller that looks again and again, with a moment each time, has a limit of its own.
            f" for up to {left:.0f} s" if left >= 1 else "",
            why,
        )

    def _other_key(self) -> SplitsecError:
        for name, key in self._others.items():
            if self._opens(key):
                return AddressError(
                    f"{self._address}, given as the address of {self._peer}, is that of {name}: correct it"
                )
        return AuthenticationError(
            f"what listens at {self._address} holds another key than the one that we have for {self._peer} "
            f"(fingerprint {fingerprint(self._peer_key)}): get the current {self._peer}.key from its owner, or "
            "correct the address"
        )

    def _opens(self, key: bytes) -> bool:
        """Return whether the party at the address holds this key."""
        trial = self._connected.context.socket(zmq.DEALER)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        try:
            trial.linger = 0
            trial.curve_serverkey = key
            trial.curve_publickey, trial.curve_secretkey = self._keys.public, self._keys.secret
            monitor = trial.get_monitor_socket(events)
            trial.connect(self._address)
            # A refusal of our key comes only from a party that could read it, since it holds this one.
            answered = bool(monitor.poll(int(PROBE_SECONDS * 1000)))
            trial.disable_monitor()
            monitor.close(0)
        except zmq.ZMQError:
            return False
        finally:
            trial.close(0)
        return answered

    def _foreign(self) -> SplitsecError:
        return AddressError(
            f"what listens at {self._address} is no party of splitsec; correct the address of {self._peer}, or its port"
        )


def unknown_host(peer: str, address: str) -> AddressError:
    """Return the error for an address whose host name cannot be resolved."""
    host, _ = host_and_port(address)
    return AddressError(
        f"the host '{host}' in the address of {peer} is not known here: correct {address}, or let this machine "
        "know the name (DNS, /etc/hosts)"
    )


def check_host(peer: str, address: str) -> None:
    """Raise `AddressError` for text that is no address, or whose host name cannot be resolved."""
    host, port = host_and_port(address)
    try:
        socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise unknown_host(peer, address) from None


def probe(address: str) -> Probed:
    """Return what is at an address, by one connection and the beginning of the handshake that parties speak."""
    host, port = host_and_port(address)
    try:
        connection = socket.create_connection((host, int(port)), PROBE_SECONDS)
    except socket.gaierror:
        return "no host"
    except ConnectionRefusedError:
        return "nobody"
    except OSError:
        return "no way"
    with connection:
        connection.settimeout(PROBE_SECONDS)
        return _greet(connection)


def _greet(connection: socket.socket) -> Probed:
    """Exchange greetings, and return what kind of listener answers."""
    greeting, ended = b"", False
    try:
        connection.sendall(_GREETING)
        while not ended and len(greeting) < len(_GREETING) and greeting[:1] in (b"", b"\xff"):
            more = connection.recv(len(_GREETING) - len(greeting))
            greeting, ended = greeting + more, not more
    except TimeoutError:
        return "foreign" if greeting else "silent"
    except OSError:
        return "closes"
    if not greeting:
        return "closes"
    return "party" if not ended and greeting[:1] == b"\xff" and greeting[12:32].rstrip(b"\0") == b"CURVE" else "foreign"
