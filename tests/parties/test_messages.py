"""The messages on a party's sockets."""

from __future__ import annotations

import pytest

from splitsec.errors import MessageError
from splitsec.parties.messages import Leave, dealer_codec, server_codec
from splitsec.training.messages import MaskSum, SeedsLost


def test_each_socket_takes_its_own_messages_alone() -> None:
    assert server_codec.decode(server_codec.encode(Leave()))[0] == Leave()
    with pytest.raises(MessageError):
        dealer_codec.decode(server_codec.encode(Leave()))
    with pytest.raises(MessageError):
        dealer_codec.decode(server_codec.encode(SeedsLost("0" * 32)))


def test_bytes_that_are_no_message_are_refused() -> None:
    for frames in ([], [b""], [b"\x93\x01"], [b"\xff" * 100]):
        with pytest.raises(MessageError):
            server_codec.decode(frames)  # type: ignore[arg-type]
    assert MaskSum(1).round == 1
