"""Peers: raw values come back as they were sent, in their step alone."""

from __future__ import annotations

import pytest
import torch
import zmq
from support.links import codec

from splitsec.errors import (
    MessageError,
    PartyTimeoutError,
)
from splitsec.transport import KeyPair, Peer, Wire
from splitsec.transport.codec import FRAME_BYTES


def test_large_raw_values_travel_in_several_frames(keys: dict[str, KeyPair]) -> None:
    values = [torch.arange(FRAME_BYTES // 8 + 9), torch.arange(5)]
    with Wire(keys["server"]) as wire, Wire(keys["client-1"]) as other:
        wire.admit("x", {"client-1": keys["client-1"].public})
        bound, address = wire.bind(zmq.DEALER, "tcp://127.0.0.1:*", "x")
        connected = other.connect(zmq.DEALER, address, keys["server"].public)
        here = Peer(bound, peer="client-1", codec=codec, timeout=20)
        there = Peer(connected, peer="server", codec=codec, timeout=20, address=address)
        there.send_raw(7, values)
        for got, sent in zip(here.receive_raw(7, values), values, strict=True):
            assert torch.equal(got, sent)
        there.send_raw(8, values)
        with pytest.raises(MessageError, match="for step 8; expected"):
            here.receive_raw(9, values)
        here.close()
        there.timeout = 0.2
        connected.setsockopt(zmq.RCVTIMEO, 200)
        with pytest.raises(
            PartyTimeoutError, match=f"server fell silent for 0.2 s in the middle of a session at {address}"
        ):
            there.receive()
        there.close()
