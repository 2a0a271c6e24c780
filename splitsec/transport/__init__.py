"""ZeroMQ channels: keys, authentication, framing, counters."""

from splitsec.transport.codec import Codec, Message, Refused, expect_tensor
from splitsec.transport.hub import Hub, Incoming, Sender
from splitsec.transport.keys import KeyPair, load_key_pair, load_public_key, load_public_keys, make_keys
from splitsec.transport.peer import Peer
from splitsec.transport.presence import Presence
from splitsec.transport.sockets import TRAINING_SPIN_SECONDS, Link, Reconnected, Traffic, Wire

__all__ = [
    "TRAINING_SPIN_SECONDS",
    "Codec",
    "Hub",
    "Incoming",
    "KeyPair",
    "Link",
    "Message",
    "Peer",
    "Presence",
    "Reconnected",
    "Refused",
    "Sender",
    "Traffic",
    "Wire",
    "expect_tensor",
    "load_key_pair",
    "load_public_key",
    "load_public_keys",
    "make_keys",
]
