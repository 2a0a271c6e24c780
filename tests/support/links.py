"""A message, its codec and links between threads, for tests of sockets."""

from __future__ import annotations

from typing import Any, ClassVar

from splitsec.transport import Codec, KeyPair, Link, Message, Refused, Wire
from splitsec.transport.tensor_specs import Tensors
from support.tensors import ANY_TENSORS


class Ping(Message, frozen=True):
    """A message that carries any tensors."""

    number: int
    tensors: ClassVar[Tensors] = ANY_TENSORS


codec: Codec[Any] = Codec(Ping | Refused)


def link_to(wire: Wire, address: str, keys: dict[str, KeyPair], **options: Any) -> Link[Any]:
    """Return a link to the server at an address."""
    settings = {"peer": "server", "peer_key": keys["server"].public, "codec": codec, "timeout": 60.0, **options}
    return Link(wire, address, **settings)
