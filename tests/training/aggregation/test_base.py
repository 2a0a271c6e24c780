"""Rules of aggregation are found by a run's settings."""

from __future__ import annotations

import pytest
import torch

from splitsec import Privacy, RunSettings
from splitsec.training.aggregation.average import AverageAtServer
from splitsec.training.aggregation.base import RULES, ServerAggregation, rule_of
from splitsec.training.aggregation.private_sum import PrivateSumAtServer
from splitsec.training.aggregation.relay import RelayAtServer


@pytest.mark.parametrize(
    ("settings", "server"),
    [
        (RunSettings(clients=("a", "b")), AverageAtServer),
        (RunSettings(clients=("a", "b"), aggregation="relay"), RelayAtServer),
        (RunSettings(clients=("a", "b"), privacy=Privacy(epsilon=3.0), steps_per_round=1), PrivateSumAtServer),
    ],
)
def test_a_runs_settings_say_which_rule_it_has(settings: RunSettings, server: type[ServerAggregation]) -> None:
    assert rule_of(settings).server is server


@pytest.mark.parametrize("name", ["average", "none", "private_sum", "relay"])
def test_what_a_server_keeps_brings_it_back(name: str) -> None:
    settings = RunSettings(clients=("a", "b"))
    server = RULES.get(name).server(settings)
    assert "combined.last" not in server.tensors()
    server.last = torch.arange(3, dtype=torch.float64)
    again = RULES.get(name).server(settings)
    again.restore({"combined.last": server.last})
    assert again.last is not None
    assert torch.equal(again.last, server.last)
