"""Messages to be sent: their values are not for logs."""

from __future__ import annotations

import torch
from support.links import Ping

from splitsec.transport.outgoing import Outgoing


def test_tensors_of_a_message_to_be_sent_are_not_printed() -> None:
    assert Outgoing("server", Ping(1)).tensors == {}
    text = repr(Outgoing("server", Ping(1), {"parts": [torch.full((1,), 12345.0)]}))
    assert "Ping(number=1)" in text
    assert "12345" not in text
