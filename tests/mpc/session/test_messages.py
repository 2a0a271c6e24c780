"""Messages of a session: read back as they were, and refused in another form."""

from __future__ import annotations

import pytest
import torch

from splitsec.errors import MessageError
from splitsec.mpc.beaver import SquarePair
from splitsec.mpc.session.messages import DealQuery, JoinSession, MaskedWeights, Run, SessionSeed, session_codec
from splitsec.parties.messages import dealer_codec


def test_a_plan_travels_with_its_kinds() -> None:
    body = JoinSession("0" * 32, 1, "client-1", (SquarePair((2, 3)),))
    decoded, _ = dealer_codec.decode(dealer_codec.encode(body))
    assert decoded == body


@pytest.mark.parametrize("body", [Run(), DealQuery("0" * 32, 5, 100)])
def test_a_message_is_known_where_it_belongs(body: object) -> None:
    codec, other = (session_codec, dealer_codec) if isinstance(body, Run) else (dealer_codec, session_codec)
    assert codec.decode(codec.encode(body))[0] == body  # type: ignore[arg-type, type-var]
    with pytest.raises(MessageError):
        other.decode(codec.encode(body))  # type: ignore[arg-type]


def test_masked_weights_are_ring_elements() -> None:
    frames = session_codec.encode(MaskedWeights((1,), 5), {"weights": [torch.zeros(2, dtype=torch.int64)]})
    assert session_codec.decode(frames)[1]["weights"][0].dtype == torch.int64
    with pytest.raises(MessageError):
        session_codec.decode(session_codec.encode(MaskedWeights((1,), 5), {"weights": [torch.zeros(2)]}))


def test_a_seed_is_not_in_what_is_printed() -> None:
    assert "secret" not in repr(SessionSeed(b"secret seed 1234"))
