"""Messages before they are sent: phases return them, and the party that owns the sockets sends them."""

from __future__ import annotations

from dataclasses import dataclass, field

from splitsec.transport.codec import Message
from splitsec.transport.tensor_specs import NamedTensors


@dataclass(frozen=True)
class Outgoing:
    """A message for a party, by name, with its tensors."""

    to: str
    body: Message
    tensors: NamedTensors = field(default_factory=dict, repr=False)
