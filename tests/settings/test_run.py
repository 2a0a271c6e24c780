"""Settings of a run: how many rounds follow from them, and which contradict each other."""

from __future__ import annotations

import pytest

from splitsec.errors import ConfigError
from splitsec.settings.privacy import Privacy
from splitsec.settings.run import MODEL_PARTS, RunSettings, check_run_settings

TWO = ("a", "b")


def test_rounds_follow_from_epochs_and_samples() -> None:
    assert RunSettings(clients=TWO, epochs=5).rounds(100) == 5
    assert RunSettings(clients=TWO, epochs=5, aggregation="relay").rounds(100) == 10
    # 100 samples in batches of 10 at two clients are 5 steps an epoch.
    assert RunSettings(clients=TWO, epochs=5, batch_size=10, steps_per_round=2).rounds(100) == 13


def test_the_learning_rate_decays_to_nearly_nothing() -> None:
    settings = RunSettings(clients=TWO, learning_rate=0.2, decay=True)
    rates = [settings.rate(number, 10) for number in range(10)]
    assert rates[0] == 0.2
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"clients": ("a",)}, "at least two different clients"),
        ({"clients": ("a", "a")}, "different names"),
        ({"minimum_clients": 3}, "must lie between 2 and the 2 clients"),
        ({"aggregation": "none", "minimum_clients": 3}, "does nothing with aggregation = 'none'"),
        ({"aggregation": "none", "server_momentum": 0.5}, "need averages"),
        ({"join": "sum"}, "whose fronts are not combined"),
        ({"layout": "horizontal", "join": "sum", "aggregation": "none"}, "is not for columns"),
        ({"layout": MODEL_PARTS, "aggregation": "none", "epochs": 3}, "train by themselves: epochs = 0"),
        ({"compression": "topk:2"}, "unknown compression 'topk:2'"),
        ({"privacy": Privacy(epsilon=3.0), "batches_in_flight": 2, "steps_per_round": 1}, "batches_in_flight = 1"),
        ({"privacy": Privacy(epsilon=3.0)}, "steps_per_round = 1"),
        ({"privacy": Privacy(epsilon=3.0, unit="client"), "aggregation": "none"}, "lies in the average"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_run_settings(RunSettings(**{"clients": TWO, **settings}))  # type: ignore[arg-type]


def test_usual_settings_are_taken() -> None:
    check_run_settings(RunSettings(clients=TWO))
    check_run_settings(RunSettings(clients=TWO, privacy=Privacy(epsilon=3.0), steps_per_round=1, batches_in_flight=1))
