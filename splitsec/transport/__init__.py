"""ZeroMQ channels: keys, authentication, framing, counters."""

from splitsec.transport.codec import Codec, Message, Refused, expect_shape
from splitsec.transport.hub import Hub, Incoming, Sender
from splitsec.transport.keys import KeyPair, load_key_pair, load_public_key, load_public_keys, make_keys
from splitsec.transport.link import Link, ReconnectedError
from splitsec.transport.peer import Peer
from splitsec.transport.presence import Presence
from splitsec.transport.sockets import TRAINING_SPIN_SECONDS, Traffic, Wire
from splitsec.transport.tensor_specs import NO_TENSORS, NamedTensors

__all__ = [
    "NO_TENSORS",
    "TRAINING_SPIN_SECONDS",
    "Codec",
    "Hub",
    "Incoming",
    "KeyPair",
    "Link",
    "Message",
    "NamedTensors",
    "Peer",
    "Presence",
    "ReconnectedError",
    "Refused",
    "Sender",
    "Traffic",
    "Wire",
    "expect_shape",
    "load_key_pair",
    "load_public_key",
    "load_public_keys",
    "make_keys",
]
