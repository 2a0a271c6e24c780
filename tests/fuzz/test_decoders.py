"""Damaged messages to every decoder: each is read, or refused as a `MessageError`, and nothing else happens."""

from __future__ import annotations

import time
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect
from support.fuzz_inputs import SECONDS, chooser, damaged_frames, message_of, rounds

from splitsec.errors import MessageError
from splitsec.mpc.session.messages import SessionBody, session_codec
from splitsec.parties.messages import DealerBody, ServerBody, dealer_codec, server_codec
from splitsec.prediction.messages import ContributionBody, contribution_codec
from splitsec.prediction.server.worker_forker import PoolBody, pool_codec
from splitsec.transport.codec import Codec, Envelope

# As long as it is told to go on, and as much again to start.
pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)

CODECS: dict[str, tuple[Codec[Any], Any]] = {
    "server": (server_codec, ServerBody),
    "dealer": (dealer_codec, DealerBody),
    "session": (session_codec, SessionBody),
    "contribution": (contribution_codec, ContributionBody),
    "pool": (pool_codec, PoolBody),
}


@pytest.mark.parametrize("name", CODECS)
def test_decoders_refuse_what_they_cannot_read_and_do_nothing_worse(name: str) -> None:
    codec, bodies = CODECS[name]
    chosen = chooser(name)
    kinds = [inspect.type_info(one) for one in get_args(bodies)]
    read, slowest, kind_of, said = 0, 0.0, "", set[str]()
    sent = 0
    for _ in rounds(chosen):
        sent += 1
        kind = chosen.choice(kinds)
        frames = damaged_frames(message_of(kind, chosen), chosen)
        began = time.process_time()
        try:
            codec.decode(frames)
            read += 1
        except MessageError as error:
            said.add(str(error))
        took = time.process_time() - began
        if took > slowest:
            slowest, kind_of = took, str(kind)[:80]
    print(f"{sent} messages, {read} of them read; the slowest took {1e3 * slowest:.1f} ms ({kind_of})")
    # Else the generator makes nothing that gets past the first check.
    assert read > sent / 20
    assert all(text.isprintable() for text in said)


def test_control_a_decoder_without_its_guard_is_brought_down() -> None:
    bare = msgspec.msgpack.Decoder(Envelope[ServerBody])
    chosen = chooser("control")
    raised = set()
    first = inspect.type_info(get_args(ServerBody)[0])
    assert isinstance(first, inspect.StructType)
    for _ in range(3000):
        try:
            bare.decode(damaged_frames(message_of(first, chosen), chosen)[0])
        except Exception as error:
            raised.add(type(error))
    assert any(not issubclass(one, msgspec.MsgspecError) for one in raised), raised
