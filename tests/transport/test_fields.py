"""Fields of messages: values beyond their limits are malformed."""

from __future__ import annotations

from typing import Any

import pytest

from splitsec.errors import (
    MessageError,
)
from splitsec.mpc.correlation import WirePlan
from splitsec.mpc.protocols.truncate import Truncation
from splitsec.mpc.session.messages import JoinSession
from splitsec.parties.messages import dealer_codec, server_codec
from splitsec.prediction.messages import OpenSession
from splitsec.training.messages import BeginRun, JoinRun
from splitsec.transport import Codec

RUN = "a" * 32


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (server_codec, OpenSession((1,) * 9, b"0" * 16)),
        (server_codec, OpenSession((1 << 31,), b"0" * 16)),
        (server_codec, OpenSession((-1,), b"0" * 16)),
        (server_codec, OpenSession((1,), b"0" * 65)),
        (dealer_codec, BeginRun("A" * 32, RUN, True)),
        (dealer_codec, BeginRun(RUN + "\n", RUN, True)),
        (dealer_codec, BeginRun(RUN + "0", RUN, True)),
        (dealer_codec, JoinRun(RUN, RUN, -1)),
        (dealer_codec, JoinRun(RUN, RUN, 1 << 31)),
        (dealer_codec, JoinSession(RUN, 0, "client\x1b[2J", WirePlan())),
        (dealer_codec, JoinSession(RUN, 0, "client-1", WirePlan([Truncation((1,) * 9, 16)]))),
    ],
)
def test_fields_that_no_party_sends_are_malformed(codec: Codec[Any], body: Any) -> None:
    with pytest.raises(MessageError, match="malformed"):
        codec.decode([bytes(frame) for frame in codec.encode(body)])


def test_control_the_same_fields_in_range_are_read() -> None:
    for codec, body in (
        (server_codec, OpenSession((1,) * 8, b"0" * 16)),
        (dealer_codec, BeginRun(RUN, "", True)),
        (dealer_codec, JoinSession(RUN, 0, "client-1", WirePlan([Truncation((1,) * 8, 16)]))),
    ):
        assert codec.decode([bytes(frame) for frame in codec.encode(body)])[0] == body
