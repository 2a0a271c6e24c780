"""Joined inputs: shares of activations under masks that serve once, from the clients of the run alone."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError, RefusedError
from splitsec.mpc.prg import fresh_seed
from splitsec.prediction.joint_inputs import (
    MOST_QUERIES,
    Contributors,
    Gathered,
    Masks,
    joined_shape,
    mask,
    put_together,
)
from splitsec.prediction.messages import Ask, Contribution, Serve, Share
from splitsec.settings.run import RunSettings
from splitsec.transport import Incoming, Sender

NAMES = ("a", "b", "c")


def _contributors(join: str, **features: int) -> tuple[Contributors, list[tuple[str, Any]]]:
    sent: list[tuple[str, Any]] = []
    settings = RunSettings(clients=NAMES, layout="vertical", join=join)  # type: ignore[arg-type]
    contributors = Contributors(settings, lambda name, body: sent.append((name, body)))
    for name, count in features.items():
        contributors.serve(name, Serve(count))
    return contributors, sent


def test_a_mask_belongs_to_one_query_of_one_client_in_one_session() -> None:
    seed = fresh_seed()
    masks = [mask(seed, *rest, (4,)).tolist() for rest in (("s", 0, "a"), ("s", 1, "a"), ("t", 0, "a"), ("s", 0, "b"))]
    assert len({tuple(values) for values in masks}) == 4
    # The control: both ends derive the same one.
    assert mask(seed, "s", 0, "a", (4,)).tolist() == masks[0]


def test_no_query_gets_a_second_share_under_its_mask() -> None:
    masks = Masks()
    masks.check("s", 0)
    masks.check("s", 2)
    masks.check("t", 0)
    for query in (0, 1, 2):
        with pytest.raises(RandomnessError, match=f"query {query} of session s has had its share"):
            masks.check("s", query)


def test_features_follow_each_other_or_are_added() -> None:
    concatenated, _ = _contributors("concat", b=2, c=5)
    shares = concatenated.shares("a", 3)
    assert [(share.client, share.start, share.width) for share in shares] == [("a", 0, 3), ("b", 3, 2), ("c", 5, 5)]
    assert joined_shape(shares, 7) == (7, 10)
    added, _ = _contributors("sum", b=3, c=3)
    assert joined_shape(added.shares("a", 3), 7) == (7, 3)
    with pytest.raises(MessageError, match="the same number of features"):
        added.shares("a", 4)
    with pytest.raises(MessageError, match="cannot have"):
        added.serve("b", Serve(1 << 20))


def test_a_session_waits_for_all_others_and_serves_the_client_that_opened_it() -> None:
    contributors, sent = _contributors("concat", b=2)
    assert not contributors.ready("a")
    contributors.serve("c", Serve(5))
    assert contributors.ready("a")
    assert contributors.names == ["b", "c"]
    with pytest.raises(RefusedError, match="a has no session"):
        contributors.ask("a", Ask("0" * 32, 0, (1,)))
    assert not sent


@pytest.mark.parametrize("join", ["concat", "sum"])
def test_shares_of_both_parties_sum_to_the_joined_activation(join: str) -> None:
    torch.manual_seed(0)
    shares = [Share("a", 0, 2), Share("b", 2 if join == "concat" else 0, 2)]
    parts = {name: torch.randint(-(2**40), 2**40, (3, 2)) for name in ("a", "b")}
    pad = mask(fresh_seed(), "s", 0, "b", (3, 2))
    client = put_together(shares, {"a": parts["a"], "b": pad}, join)
    server = put_together(shares, {"a": torch.zeros(3, 2, dtype=torch.int64), "b": parts["b"] - pad}, join)
    whole = torch.cat(list(parts.values()), 1) if join == "concat" else parts["a"] + parts["b"]
    assert torch.equal(client + server, whole)


class _Hub:
    def __init__(self, *contributions: tuple[str, int, torch.Tensor]) -> None:
        self._waiting = deque(contributions)
        self.refused: list[str] = []

    def receive(self, _timeout: float, **_options: Any) -> Incoming[Any] | None:
        if not self._waiting:
            return None
        name, query, masked = self._waiting.popleft()
        return Incoming(Sender(name, b""), Contribution(query), {"masked": masked})

    def refuse(self, _to: Sender, error: Exception) -> None:
        self.refused.append(str(error))


def _gathered(hub: Any) -> Gathered:
    return Gathered(hub, [Share("a", 0, 1), Share("b", 1, 2)], "a", "concat", 3)


def test_contributions_of_another_shape_or_query_are_refused_and_the_first_counts() -> None:
    right = torch.ones(3, 2, dtype=torch.int64)
    hub = _Hub(
        ("b", 0, right[:, :1]), ("b", MOST_QUERIES, right), ("b", 1, right), ("b", 0, right), ("b", 0, 2 * right)
    )
    share = _gathered(hub).share(0, timeout=5, stopped=lambda: False)
    assert share.tolist() == [[0, 1, 1]] * 3
    assert hub.refused == ["a contribution that does not fit", "a contribution to a query that has not been asked"]


def test_a_client_that_contributes_nothing_is_named() -> None:
    with pytest.raises(PartyTimeoutError, match="b contributed nothing"):
        _gathered(_Hub()).share(0, timeout=0.01, stopped=lambda: False)
    with pytest.raises(RefusedError, match="stopping"):
        _gathered(_Hub()).share(0, timeout=5, stopped=lambda: True)
