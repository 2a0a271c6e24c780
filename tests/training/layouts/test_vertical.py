"""Columns of the same people: who may have labels, who asks, and whose features fit."""

from __future__ import annotations

import pytest
from support.parties_in_threads import hello
from torch import nn

from splitsec import RunSettings, SplitModel
from splitsec.errors import ConfigError, RefusedError
from splitsec.randomness import OwnRandomness
from splitsec.training.layouts import LAYOUTS
from splitsec.training.messages import ColumnsPart, Hello
from splitsec.training.tail import TailTrainer

VERTICAL = LAYOUTS.get("vertical")
RUN = RunSettings(clients=("a", "b"), join="concat", epochs=2)
ALONE = RunSettings(clients=("a", "b"), join="concat", epochs=0)


def _hello(*, labels: bool = False, features: int = 2, **columns: object) -> Hello:
    return hello(columns=ColumnsPart(labels, **columns), shape=(features,))  # type: ignore[arg-type]


def _trainer(features: int) -> TailTrainer:
    tail = SplitModel(nn.Sequential(nn.Linear(features, 3)), "input").tail
    return TailTrainer(tail, learning_rate=0.01, randomness=OwnRandomness(1))


def test_one_client_has_the_labels() -> None:
    with pytest.raises(RefusedError, match="b and a both have labels"):
        VERTICAL.check_hello("b", _hello(labels=True), {"a": _hello(labels=True)}, RUN)
    VERTICAL.check_hello("b", _hello(), {"a": _hello(labels=True)}, RUN)
    with pytest.raises(ConfigError, match="no client has labels"):
        VERTICAL.check_members({"a": _hello(), "b": _hello()}, RUN, _trainer(4))


def test_one_client_asks_for_predictions() -> None:
    with pytest.raises(RefusedError, match="b and a both ask for predictions"):
        VERTICAL.check_hello("b", _hello(asks=True), {"a": _hello(asks=True)}, RUN)
    trained = {"trains": False, "trained": True, "asks": False}
    with pytest.raises(ConfigError, match="no client asks for predictions"):
        VERTICAL.check_members({"a": _hello(**trained), "b": _hello(**trained)}, ALONE, _trainer(4))


def test_an_untrained_front_makes_no_predictions() -> None:
    with pytest.raises(RefusedError, match="the front of a is not trained"):
        VERTICAL.check_hello("a", _hello(), {}, ALONE)
    with pytest.raises(RefusedError, match="a is there for predictions alone"):
        VERTICAL.check_hello("a", _hello(trains=False), {}, RUN)


def test_features_that_are_added_are_as_many_at_every_client() -> None:
    added = RunSettings(clients=("a", "b"), join="sum", epochs=2)
    members = {"a": _hello(labels=True, features=2), "b": _hello(features=3)}
    with pytest.raises(ConfigError, match="the same number of features; there are: a 2, b 3"):
        VERTICAL.check_members(members, added, _trainer(2))
    # The control: one behind the other they may differ.
    VERTICAL.check_members(members, RUN, _trainer(5))


def test_nobody_comes_back_into_aligned_rows() -> None:
    for finished in (True, False):
        with pytest.raises(RefusedError, match="start all parties again"):
            VERTICAL.check_return(finished=finished)
