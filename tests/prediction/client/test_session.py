"""A client's session: what the server sends first is checked, and no more is asked than it answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitsec.errors import BudgetError, MessageError
from splitsec.mpc.session.messages import MaskedWeights, Ping
from splitsec.prediction.client.session import ClientSession, receive_masked_weights

SHAPES = {2: (3, 4), 5: (1,)}
WEIGHTS = [torch.zeros(3, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)]


class _Peer:
    def __init__(self, body: Any, *weights: torch.Tensor) -> None:
        self._answer = body, {"weights": list(weights)}

    def receive(self) -> Any:
        return self._answer


def test_masked_weights_are_those_of_the_program() -> None:
    peer: Any = _Peer(MaskedWeights((2, 5), 3), *WEIGHTS)
    masked, ahead = receive_masked_weights(peer, SHAPES)
    assert {layer: tuple(tensor.shape) for layer, tensor in masked.items()} == SHAPES
    assert ahead == 3


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (_Peer(Ping()), "sent Ping where its masked weights were due"),
        (_Peer(MaskedWeights((2,), 3), *WEIGHTS[:1]), "masked weights were due"),
        (_Peer(MaskedWeights((2, 5), 3), *WEIGHTS[:1]), "masked weights were due"),
        (_Peer(MaskedWeights((2, 5), 0), *WEIGHTS), "prepares no queries"),
        (_Peer(MaskedWeights((2, 5), 3), *reversed(WEIGHTS)), "a masked weight has shape 1, expected 3x4"),
    ],
)
def test_masked_weights_that_do_not_fit_are_refused(peer: Any, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        receive_masked_weights(peer, SHAPES)


def test_no_more_rows_are_asked_than_the_server_answers() -> None:
    session = ClientSession.__new__(ClientSession)
    session.left = None
    session.check_left(10**9, 1)
    session.left = 10
    session.check_left(10, 5)
    with pytest.raises(BudgetError, match=r"answers 10 more .* these are 12 .* \(predictions = 8\)"):
        session.check_left(12, 4)
