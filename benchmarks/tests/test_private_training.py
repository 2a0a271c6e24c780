"""Private training beside Opacus: the same noise, rate and steps, so the same epsilon."""

from __future__ import annotations

import pytest

from benchmarks.private_training import CUT, measure_private_training
from splitsec.local.run import LocalRun
from splitsec.settings.privacy import Privacy


@pytest.mark.slow
def test_the_epsilon_is_that_of_opacus() -> None:
    run = LocalRun(dataset="digits", clients=2, epochs=1, cut=CUT, privacy=Privacy(epsilon=3.0, delta=1e-4))
    record = measure_private_training(run, seeds=1)
    assert record.epsilon_split == pytest.approx(record.epsilon_opacus, rel=1e-3)
    assert record.epsilon_split <= 3.0
