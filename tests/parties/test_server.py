"""The server as its user sees it: made of few objects, and refused where it could not keep its promises."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.parties_in_threads import CUT, model, world

from splitsec import AnswerRules, Network, RunSettings, Server, Serving, SplitModel
from splitsec.errors import ConfigError


def _server(here: object, **changed: object) -> Server:
    settings = RunSettings(clients=("client-1", "client-2"), epochs=1)
    network = Network(
        keys=here.keys["server"],  # type: ignore[attr-defined]
        peers=here.peers,  # type: ignore[attr-defined]
        address="tcp://127.0.0.1:*",
        dealer=here.dealer.address,  # type: ignore[attr-defined]
    )
    options = {"cut": CUT, "settings": settings, "network": network, **changed}
    return Server(options.pop("tail", None) or SplitModel(model(), CUT).tail, **options)  # type: ignore[arg-type]


def test_a_server_is_made_of_few_objects() -> None:
    names = ["tail", "cut", "settings", "network", "serving", "storage", "runtime"]
    assert list(inspect.signature(Server).parameters) == names


def test_what_would_break_a_promise_is_refused_before_anybody_connects(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        with pytest.raises(ConfigError, match="inputs in plain; choose a later cut"):
            _server(here, cut="input")
        with pytest.raises(ConfigError, match="predictions_per_client needs a directory"):
            _server(here, serving=Serving(rules=AnswerRules(predictions_per_client=5)))
        alone = replace(RunSettings(clients=("client-1", "client-2")), clients=("client-1",))
        with pytest.raises(ConfigError, match="at least two different clients"):
            _server(here, settings=alone)


def test_a_tail_that_was_changed_predicts_nothing(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True) as here:
        tail = SplitModel(model(), CUT).tail
        with torch.no_grad():
            next(tail.parameters()).add_(1)
        for_predictions = RunSettings(clients=("client-1", "client-2"), epochs=0)
        with pytest.raises(ConfigError):
            _server(here, tail=tail, settings=for_predictions)
