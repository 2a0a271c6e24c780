"""Requests to the dealer: credit grows with what arrives, and an answer to another request is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitsec.errors import MessageError
from splitsec.mpc.correlation import WirePlan
from splitsec.mpc.protocols.shared_linear import SharedWeight
from splitsec.mpc.protocols.truncate import Truncation
from splitsec.mpc.session.messages import (
    Corrections,
    DealQuery,
    Done,
    JoinSession,
    More,
    SessionSeed,
    ShareWeights,
    WeightShares,
)
from splitsec.mpc.session.plan import Plan, correction_count
from splitsec.prediction import corrections as module
from splitsec.prediction.corrections import corrections, join_session, weight_shares

PLAN: Plan = (Truncation((600,), 16),)
COUNT = correction_count(PLAN)


class Dealer:
    """A link whose answers are given in advance."""

    def __init__(self, *answers: tuple[Any, dict[str, Any]]) -> None:
        self.sent: list[Any] = []
        self._answers = list(answers)

    def send(self, body: Any) -> None:
        self.sent.append(body)

    def receive(self, **_options: Any) -> tuple[Any, dict[str, Any]]:
        return self._answers.pop(0)

    def request(self, body: Any) -> tuple[Any, dict[str, Any]]:
        self.send(body)
        return self.receive()


def _parts(query: int, *sizes: int) -> list[tuple[Any, dict[str, Any]]]:
    return [(Corrections(query), {"part": torch.zeros(size, dtype=torch.int64)}) for size in sizes]


def _get(dealer: Any) -> list[int]:
    return [len(part) for part in corrections(dealer, "s", PLAN, 3, rank=0)]


def test_corrections_that_fit_the_window_take_no_further_message() -> None:
    half = COUNT // 2
    dealer = Dealer(*_parts(3, half, COUNT - half))
    assert _get(dealer) == [half, COUNT - half]
    assert dealer.sent == [DealQuery("s", 3, 8 * COUNT)]


def test_credit_is_asked_for_as_parts_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    window = 8 * (COUNT // 3)
    monkeypatch.setattr(module, "WINDOW_BYTES", window)
    part = COUNT // 6
    dealer = Dealer(*_parts(3, part, part, part, part, COUNT - 4 * part))
    _get(dealer)
    asked, *more = dealer.sent
    assert asked == DealQuery("s", 3, window)
    assert more
    assert all(isinstance(body, More) and body.query == 3 for body in more)
    assert window + sum(body.count for body in more) >= 8 * COUNT


@pytest.mark.parametrize("answer", [(Done(), {}), *_parts(4, COUNT)])
def test_the_answer_to_another_query_is_refused(answer: Any) -> None:
    with pytest.raises(MessageError, match="answered another request"):
        _get(Dealer(answer))


def test_a_seed_is_what_the_dealer_answers_and_nothing_else() -> None:
    dealer: Any = Dealer((SessionSeed(b"0" * 16), {}))
    assert join_session(dealer, "s", 0, "client-1", PLAN) == b"0" * 16
    assert dealer.sent == [JoinSession("s", 0, "client-1", WirePlan(PLAN))]
    refusing: Any = Dealer((Done(), {}))
    with pytest.raises(MessageError, match="answered Done to a request for a seed"):
        join_session(refusing, "s", 0, "client-1", PLAN)


def test_shares_of_weights_have_the_shapes_that_were_asked_for() -> None:
    item = SharedWeight(5, "0" * 32, 0, (2, 3), (2,))
    weight, bias = torch.ones(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    dealer: Any = Dealer((WeightShares(), {"shares": [weight, bias]}))
    shares = weight_shares(dealer, "s", [item])
    assert torch.equal(shares[5].weight, weight)
    assert dealer.sent == [ShareWeights("s", (item,))]
    for wrong, reason in (([weight], "answered WeightShares"), ([bias, bias], "share has shape 2, expected 2x3")):
        other: Any = Dealer((WeightShares(), {"shares": wrong}))
        with pytest.raises(MessageError, match=reason):
            weight_shares(other, "s", [item])
